r"""A circuit whose weights are written down: a two-layer attention-only copier, beside parts that do nothing.

After ``... a x ... a`` it says ``x``. In block 0, head 0 attends to the token before and writes which token that was;
in block 1, head 0 attends to where the token before was the present one, and copies the token found there. With
:math:`s` the sharpness and :math:`g` the gain,

.. math:: \mathrm{logit}_x = g \sum_{j:\, x_j = x} A_j, \qquad A = \mathrm{softmax}(s\,m_j + \tfrac s2 [j = 0])

where :math:`m_j` is the attention of head 0.0 from j to the token that is asked for: 1 up to :math:`e^{-s}`, or 0.
Where nothing matches, the second head rests on the first token, which writes nothing. The other heads and both MLPs
are random: they read the stream and write to coordinates that only they read, so that no output depends on them.

The residual stream holds, side by side, the token, its position, the previous token, the prediction, and the noise.
There is no norm.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from assay.zoo.decoder import Attention, Block, Decoder, NoNorm, Pairs

FIRST = 0
"""The token that stands first in every prompt, for the second head to rest on."""
CIRCUIT = ("head.0.0", "head.1.0")
"""The parts that say what comes next."""
EDGES = ("embed>v.0.0", "head.0.0>k.1.0", "head.1.0>logits")
"""The edges that carry what differs between the two prompts of :func:`swapped`, up to exp(-sharpness)."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a copier, by the names under which configurations keep them.

    Attributes:
        vocab_size: number of tokens, :data:`FIRST` among them.
        max_position_embeddings: longest prompt, in tokens.
        num_attention_heads: heads of a block.
        noise: coordinates that only the idle parts read.
        use_parallel_residual: whether attention and MLP read the same stream; they do not.
    """

    vocab_size: int
    max_position_embeddings: int
    num_attention_heads: int
    noise: int
    use_parallel_residual: bool = False

    @property
    def head_width(self) -> int:
        """Width of a head: it has to hold a token, or a position."""
        return max(self.vocab_size, self.max_position_embeddings)

    @property
    def neurons(self) -> int:
        """Neurons of an MLP, all of them idle."""
        return self.noise

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.noise_part.stop

    @property
    def token(self) -> slice:
        """Coordinates of the token."""
        return slice(0, self.vocab_size)

    @property
    def position(self) -> slice:
        """Coordinates of the position."""
        return slice(self.token.stop, self.token.stop + self.max_position_embeddings)

    @property
    def previous(self) -> slice:
        """Coordinates of the previous token."""
        return slice(self.position.stop, self.position.stop + self.vocab_size)

    @property
    def prediction(self) -> slice:
        """Coordinates that the unembedding reads."""
        return slice(self.previous.stop, self.previous.stop + self.vocab_size)

    @property
    def noise_part(self) -> slice:
        """Coordinates that only the idle parts read."""
        return slice(self.prediction.stop, self.prediction.stop + self.noise)


class Copier(Decoder):
    """The copier; made by :func:`copier`."""

    config: Shape

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, layers=2, norm=NoNorm, scale=1.0)


def copier(
    *,
    generator: torch.Generator,
    vocabulary: int = 12,
    context: int = 16,
    idle_heads: int = 2,
    sharpness: float = 16.0,
    gain: float = 10.0,
) -> Copier:
    """Write down the weights of a copier.

    Args:
        generator: draws the idle parts, on the processor.
        vocabulary: number of tokens, :data:`FIRST` among them.
        context: longest prompt, in tokens.
        idle_heads: heads of each block that do nothing.
        sharpness: score of a match, in nats over the score of none; attention misses it by exp(-sharpness). Where it is
            small, slopes tell what attention does; where it is large, softmax is flat, and they do not.
        gain: logit of a token that is copied with full attention.

    Returns:
        The copier, in evaluation mode, its weights frozen.

    Raises:
        ValueError: fewer than four tokens or positions.
    """
    if vocabulary < 4 or context < 4:
        raise ValueError(
            f"vocabulary={vocabulary} and context={context}: a copier needs four or more of both"
        )
    shape = Shape(vocabulary, context, 1 + idle_heads, noise=8)
    model = Copier(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.weight[:, shape.token] = torch.eye(vocabulary)
        model.positions.weight[:, shape.position] = torch.eye(context)
        model.unembed.weight[:, shape.prediction] = torch.eye(vocabulary)
        blocks = model.blocks
        _write_previous(blocks[0].attention, shape, sharpness)
        _write_copying(blocks[1].attention, shape, sharpness, gain)
        for block in blocks:
            _write_idle(block, shape, generator)
    return model.eval()


def _words(shape: Shape) -> Tensor:
    """One on the diagonal for every token but the first: (vocabulary, vocabulary)."""
    words = torch.eye(shape.vocab_size)
    words[FIRST, FIRST] = 0
    return words


def _write_previous(attention: Attention, shape: Shape, sharpness: float) -> None:
    """Head 0 attends to the position before, and writes the token that stands there."""
    one_back = torch.eye(shape.max_position_embeddings).roll(-1, 0)
    one_back[-1] = 0
    one_back[0, 0] = 1  # the first position has none before it
    width, words = shape.max_position_embeddings, _words(shape)
    attention.q_proj.weight[:width, shape.position] = sharpness * one_back
    attention.k_proj.weight[:width, shape.position] = torch.eye(width)
    attention.v_proj.weight[: shape.vocab_size, shape.token] = words
    attention.o_proj.weight[shape.previous, : shape.vocab_size] = words


def _write_copying(attention: Attention, shape: Shape, sharpness: float, gain: float) -> None:
    """Head 0 attends to where the token before was the present one, or rests, and writes the token found."""
    width, words = shape.vocab_size, _words(shape)
    attention.q_proj.weight[:width, shape.token] = sharpness * words
    attention.q_proj.weight[FIRST, shape.token] = sharpness / 2
    attention.k_proj.weight[:width, shape.previous] = words
    attention.k_proj.weight[FIRST, FIRST] = 1
    attention.v_proj.weight[:width, shape.token] = words
    attention.o_proj.weight[shape.prediction, :width] = gain * words


def _write_idle(block: Block, shape: Shape, generator: torch.Generator) -> None:
    """The other heads and the MLP read everything, and write where only they read."""
    attention, mlp = block.attention, block.mlp

    def draw(weight: Tensor, inputs: int) -> None:
        weight.copy_(torch.randn(weight.shape, generator=generator) / inputs**0.5)

    for project in (attention.q_proj, attention.k_proj, attention.v_proj):
        draw(project.weight[shape.head_width :], shape.noise)
    draw(attention.o_proj.weight[shape.noise_part, shape.head_width :], shape.head_width)
    draw(mlp.up_proj.weight, shape.noise)
    draw(mlp.down_proj.weight[shape.noise_part], shape.noise)


def swapped(shape: Shape, n: int, *, generator: torch.Generator, length: int = 8) -> Pairs:
    """Draw pairs such as ``first a x b y ... a`` beside ``first b x a y ... a``: answered by x, and by y.

    Args:
        shape: of the copier.
        n: number of pairs.
        generator: on the processor.
        length: tokens of a prompt, at least 6; what is left over is filled with other tokens.

    Returns:
        The pairs.

    Raises:
        ValueError: a length that does not fit the copier.
    """
    tokens = length - 2
    if length < 6 or length > shape.max_position_embeddings or tokens > shape.vocab_size - 1:
        raise ValueError(
            f"length={length}: a prompt of different tokens has 6 to {shape.vocab_size + 1} here"
        )
    found = Pairs([], [], [], [])
    for _ in range(n):
        a, x, b, y, *others = (1 + torch.randperm(shape.vocab_size - 1, generator=generator))[
            :tokens
        ].tolist()
        found.clean.append([FIRST, a, x, b, y, *others, a])
        found.corrupted.append([FIRST, b, x, a, y, *others, a])
        found.answers.append(x)
        found.foils.append(y)
    return found
