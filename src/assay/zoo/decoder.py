"""A small decoder whose blocks are laid out as those of Hugging Face models, for reference material of known parts.

``assay.wrap`` finds every part of it, and its blocks keep keys and values, so that they can continue a prefix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Config(Protocol):
    """Sizes of a decoder, by the names under which configurations keep them."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    @property
    def max_position_embeddings(self) -> int:
        """Longest prompt, in tokens."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        ...

    @property
    def num_attention_heads(self) -> int:
        """Heads of a block."""
        ...

    @property
    def head_width(self) -> int:
        """Width of a head."""
        ...

    @property
    def neurons(self) -> int:
        """Neurons of an MLP."""
        ...


@dataclass(frozen=True)
class Output:
    """What a decoder returns.

    Attributes:
        logits: (batch, pos, vocabulary).
    """

    logits: Tensor


@dataclass(frozen=True)
class Pairs:
    """Pairs of prompts that differ in which of two tokens came before which.

    Attributes:
        clean: token ids, one row a pair.
        corrupted: likewise.
        answers: what follows the clean prompt, one a pair.
        foils: what follows the corrupted one.
    """

    clean: list[list[int]]
    corrupted: list[list[int]]
    answers: list[int]
    foils: list[int]


class Attention(nn.Module):
    """Causal attention without biases."""

    def __init__(self, config: Config, layer: int, scale: float) -> None:
        super().__init__()
        width = config.num_attention_heads * config.head_width
        self.layer, self.heads, self.scale = layer, config.num_attention_heads, scale
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(config.hidden_size, width, bias=False) for _ in range(3)
        )
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor, past_key_values: Any = None) -> Tensor:
        """Attend; ``past_key_values`` keeps keys and values as a cache of transformers does."""
        q, k, v = (
            project(hidden_states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer)
        queries, keys = q.shape[-2], k.shape[-2]
        seen = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self.scale)
        return self.o_proj(z.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """An MLP without biases."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.neurons, bias=False)
        self.act = nn.GELU()
        self.down_proj = nn.Linear(config.neurons, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map each position."""
        return self.down_proj(self.act(self.up_proj(hidden_states)))


class Block(nn.Module):
    """Attention, then an MLP, each added to the stream."""

    def __init__(self, config: Config, layer: int, norm: Callable[[int], nn.Module], scale: float) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (norm(config.hidden_size) for _ in range(2))
        self.attention, self.mlp = Attention(config, layer, scale), Mlp(config)

    def forward(self, hidden_states: Tensor, past_key_values: Any = None) -> Tensor:
        """Read the stream, and add to it."""
        middle = hidden_states + self.attention(self.ln_1(hidden_states), past_key_values)
        return middle + self.mlp(self.ln_2(middle))


class NoNorm(nn.Module):
    """What stands where other models have a norm: it passes on what it is given, and says so."""

    centring = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def divisor(self, x: Tensor) -> Tensor:
        """One at every position, (..., 1)."""
        return torch.ones_like(x[..., :1])

    def forward(self, x: Tensor) -> Tensor:
        """Give back what is given."""
        return x


class Decoder(nn.Module):
    """Embeddings of tokens and positions, blocks, a norm, an unembedding.

    Args:
        config: its sizes.
        layers: number of blocks.
        norm: makes a norm of a width.
        scale: what products of queries and keys are multiplied by.
    """

    def __init__(self, config: Config, layers: int, norm: Callable[[int], nn.Module], scale: float) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer, norm, scale) for layer in range(layers))
        self.norm = norm(config.hidden_size)
        self.unembed = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def blocks(self) -> list[Block]:
        """The blocks, as what they are."""
        return [block for block in self.layers if isinstance(block, Block)]

    def get_output_embeddings(self) -> nn.Linear:
        """The unembedding."""
        return self.unembed

    def forward(
        self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False, logits_to_keep: int = 0
    ) -> Output:
        """Predict the next token at each position.

        Args:
            input_ids: (batch, pos); all prompts of one length.
            past_key_values: keys and values of the tokens before, as a cache of transformers.
            use_cache: keep keys and values; they are kept wherever there is a cache.
            logits_to_keep: unembed this many positions only, the last ones; 0 for all.

        Returns:
            The logits.
        """
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        places = torch.arange(before, before + input_ids.shape[1], device=input_ids.device)
        stream = self.embed(input_ids) + self.positions(places)
        for block in self.layers:
            stream = block(stream, past_key_values=past_key_values)
        return Output(self.unembed(self.norm(stream)[:, -logits_to_keep:]))
