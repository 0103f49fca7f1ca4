r"""A two-layer attention-only transformer that learns to copy from its context: induction heads, and their bump.

Each text is a random block of tokens repeated to the end, with a period drawn anew, so that no fixed distance will do:
a token that was seen before is followed by what followed it then. At first the loss stays near ln(vocabulary); within
a short stretch of training the loss of repeated tokens falls, when a head of the second layer learns to use one of the
first that looks one token back. Compare C. Olsson et al. 2022 (transformer-circuits.pub), where it shows as a bump.

Left alone, every head learns a share of it. :func:`transformer` trains with a price on heads, and no more of them than
are needed are left: with :math:`V_h` and :math:`O_h` a head's value and output matrices,

.. math:: L + c \sum_h \sqrt{\|V_h\|^2 + \|O_h\|^2}

What a head that is left does shows in its pattern: :func:`looks_back` and :func:`inducts` tell, and no method of
attribution is asked.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from assay.zoo.decoder import Decoder, Pairs
from assay.zoo.training import Batch, Training, generators, linear, train

VOCABULARY, LENGTH, WIDTH, HEADS = 32, 32, 32, 2
PERIODS = (8, 16)
"""Shortest and longest period of a text."""
INITIAL = 0.16
"""Standard deviation of the embeddings at the start."""
LEAST = 1e-4
"""What is added under the root of the price, so that it has a slope at zero."""


class Attention(nn.Module):
    """Causal attention."""

    def __init__(self, width: int, heads: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            linear(width, width, bias=False, generator=generator) for _ in range(4)
        )

    def forward(self, stream: Tensor) -> Tensor:
        """Give what attention adds to a stream (example, position, width)."""
        query, key, value = (
            part(stream).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = query @ key.mT / query.shape[-1] ** 0.5
        length = stream.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=stream.device).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))

    def norms(self) -> Tensor:
        """How large each head's value and output matrices are together, (head,)."""
        value = self.value.weight.unflatten(0, (self.heads, -1)).square().sum((1, 2))
        out = self.out.weight.unflatten(1, (self.heads, -1)).square().sum((0, 2))
        return (value + out + LEAST**2).sqrt()


class Network(nn.Module):
    """Embeddings of tokens and positions, two layers of attention, an unembedding.

    Args:
        width: of the residual stream.
        heads: of each layer.
        generator: draws the weights.
    """

    def __init__(self, width: int = WIDTH, heads: int = HEADS, *, generator: torch.Generator) -> None:
        super().__init__()
        self.tokens = nn.Parameter(INITIAL * torch.randn(VOCABULARY, width, generator=generator))
        self.positions = nn.Parameter(INITIAL * torch.randn(LENGTH, width, generator=generator))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.layers = nn.ModuleList(Attention(width, heads, generator=generator) for _ in range(2))
        self.out = linear(width, VOCABULARY, bias=False, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        """Give scores (example, position, token) of ids (example, position)."""
        stream = self.tokens[ids] + self.positions
        for norm, layer in zip(self.norms, self.layers, strict=False):
            stream = stream + layer(norm(stream))
        return self.out(self.norms[-1](stream))


def loss(module: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of each token given those before it, (example, position - 1), in nats."""
    scores, after = module(batch[0])[:, :-1], batch[0][:, 1:]
    each = functional.cross_entropy(scores.flatten(0, 1), after.flatten(), reduction="none")
    return each.view(after.shape)


def examples(n: int, *, generator: torch.Generator) -> Tensor:
    """Draw texts, (n, position): a random block repeated to the end, of a random period each."""
    shortest, longest = PERIODS
    period = torch.randint(shortest, longest + 1, (n, 1), generator=generator)
    block = torch.randint(VOCABULARY, (n, longest), generator=generator)
    return block.gather(1, torch.arange(LENGTH) % period)


def train_many(  # noqa: PLR0913 (each is one documented setting of the training)
    seeds: int,
    *,
    steps: int = 1500,
    keep_every: int = 15,
    rate: float = 1e-3,
    batch_size: int = 32,
    width: int = WIDTH,
    heads: int = HEADS,
    price: float = 0.0,
    generator: torch.Generator,
) -> Training:
    """Train many networks in one call by Adam; see `assay.zoo.training.train`.

    Args:
        seeds: number of networks.
        steps: number of updates.
        keep_every: keep every so many steps.
        rate: of learning.
        batch_size: fresh texts in each step.
        width: of the residual stream.
        heads: of each layer.
        price: of a head's size, in nats; the loss that is kept has it in.
        generator: of weights and of texts.
    """
    sources = generators(seeds, generator=generator)
    networks = [Network(width, heads, generator=source) for source in sources]

    def batches(step: int) -> Batch:
        return (torch.stack([examples(batch_size, generator=source) for source in sources]),)

    def priced(module: nn.Module, batch: Batch) -> Tensor:
        sizes = [layer.norms().sum() for layer in module.modules() if isinstance(layer, Attention)]
        return loss(module, batch) + price * torch.stack(sizes).sum()

    optimizer = partial(torch.optim.Adam, lr=rate)
    return train(
        networks, priced if price else loss, batches, optimizer=optimizer, steps=steps, keep_every=keep_every
    )


@dataclass(frozen=True)
class Shape:
    """Sizes of a trained transformer, by the names under which configurations keep them.

    Attributes:
        hidden_size: width of the residual stream.
        num_attention_heads: heads of a block.
        vocab_size: number of tokens.
        max_position_embeddings: longest prompt, in tokens.
        neurons: of each MLP, whose weights are zero.
        use_parallel_residual: whether attention and MLP read the same stream; they do not.
    """

    hidden_size: int
    num_attention_heads: int
    vocab_size: int = VOCABULARY
    max_position_embeddings: int = LENGTH
    neurons: int = 4
    use_parallel_residual: bool = False

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads


def transformer(
    *, generator: torch.Generator, steps: int = 700, width: int = 64, heads: int = 4, price: float = 0.03
) -> Decoder:
    """Train a transformer that copies with few of its heads; ten seconds on one core.

    Args:
        generator: of weights and of texts.
        steps: number of updates.
        width: of the residual stream.
        heads: of each layer: more than are needed.
        price: of a head's size, in nats.

    Returns:
        The transformer, for ``assay.wrap``, in evaluation mode, its weights frozen.
    """
    trained = train_many(
        1,
        steps=steps,
        keep_every=steps,
        rate=3e-3,
        width=width,
        heads=heads,
        price=price,
        generator=generator,
    )
    return decoder(trained.network())


@torch.no_grad()
def decoder(network: nn.Module) -> Decoder:
    """Lay a network's weights out as those of Hugging Face models are, for ``assay.wrap``.

    Args:
        network: a `Network`.

    Returns:
        A decoder that gives the same scores. Its MLPs, without which few methods know a block, have weights of zero.

    Raises:
        TypeError: another module.
    """
    if not isinstance(network, Network):
        raise TypeError(f"a {type(network).__name__}: expected a Network")
    layers = [layer for layer in network.layers if isinstance(layer, Attention)]
    shape = Shape(network.tokens.shape[1], layers[0].heads)
    made = Decoder(shape, len(layers), nn.LayerNorm, shape.head_width**-0.5)
    made.embed.weight.copy_(network.tokens)
    made.positions.weight.copy_(network.positions)
    made.unembed.weight.copy_(network.out.weight)
    made.norm.load_state_dict(network.norms[-1].state_dict())
    for block, layer, norm in zip(made.blocks, layers, network.norms, strict=False):
        block.ln_1.load_state_dict(norm.state_dict())
        own = block.attention
        for there, here in ((own.q_proj, layer.query), (own.k_proj, layer.key), (own.v_proj, layer.value)):
            there.weight.copy_(here.weight)
        own.o_proj.weight.copy_(layer.out.weight)
        for weight in block.mlp.parameters():
            weight.zero_()
    return made.eval()


def swapped(n: int, *, generator: torch.Generator, length: int = 15) -> Pairs:
    """Draw pairs such as ``a x ... b y ... a`` beside ``b x ... a y ... a``: answered by x, and by y.

    Args:
        n: number of pairs.
        generator: on the processor.
        length: tokens of a prompt: one more than a period, of which all tokens are different. Both times the last
            token stands a period or more behind its first place.

    Returns:
        The pairs.

    Raises:
        ValueError: a length that is none.
    """
    shortest, longest = PERIODS
    if not shortest + 2 < length <= longest + 1:
        raise ValueError(f"length={length}: prompts have {shortest + 3} to {longest + 1} tokens")
    found = Pairs([], [], [], [])
    for _ in range(n):
        block = torch.randperm(VOCABULARY, generator=generator)[: length - 1].tolist()
        place = int(torch.randint(2, length - shortest, (), generator=generator))  # of b
        other = [block[place], *block[1:place], block[0], *block[place + 1 :]]
        found.clean.append([*block, block[0]])
        found.corrupted.append([*other, block[0]])
        found.answers.append(block[1])
        found.foils.append(block[place + 1])
    return found


def looks_back(pattern: Tensor) -> Tensor:
    """How much each head attends to the token before, the mean over queries but the first: (head,).

    Args:
        pattern: of one layer, (example, head, query, key).
    """
    return pattern.diagonal(-1, -2, -1).mean((0, 2))


def inducts(pattern: Tensor, ids: Tensor) -> Tensor:
    """How much each head attends to where a token stood that follows an earlier copy of the present one: (head,).

    Args:
        pattern: of one layer, (example, head, query, key).
        ids: (example, pos).

    Returns:
        The mean over queries whose token was there before.
    """
    alike = ids[:, :, None] == ids[:, None, :]
    follows = functional.pad(alike, (1, 0))[..., :-1].tril()  # the query's token stands before the key
    there = follows.any(-1)[:, None]
    return ((pattern * follows[:, None]).sum(-1) * there).sum((0, 2)) / there.sum()
