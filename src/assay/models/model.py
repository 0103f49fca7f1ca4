"""The network under study with its tokenizer, untouched."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from operator import index

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from assay.errors import BadInput
from assay.models.anatomy import Anatomy, Layout, find_anatomy, text_config
from assay.models.sites import available

Tokens = tuple[int, ...]
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, eq=False)
class Model:
    """The network under study with its tokenizer, untouched.

    Attributes:
        module: the Hugging Face module tree as it was loaded, or any ``nn.Module``, in evaluation mode.
        tokenizer: its tokenizer; ``None`` where the model is given token ids, or is no language model.
        anatomy: where the parts are; ``None`` for a module that is not a decoder.
        source: what ``load`` was given, or the class name of a wrapped module.
    """

    module: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    anatomy: Anatomy | None
    source: str

    @property
    def device(self) -> torch.device:
        """Where the first parameter lives."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The first parameter's dtype."""
        return next((p.dtype for p in self.module.parameters()), torch.float32)

    @property
    def parts(self) -> Anatomy:
        """The anatomy of a decoder.

        Raises:
            BadInput: the model is not a decoder; the message shows its tree and the layout to pass.
        """
        return self.anatomy if self.anatomy is not None else find_anatomy(self.module)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.parts.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.parts.d_model

    @cached_property
    def context_length(self) -> int | None:
        """The longest prompt the model was built for; ``None`` where its configuration sets none."""
        config = text_config(self.module)
        return next((int(v) for name in CONTEXT if isinstance(v := getattr(config, name, None), int)), None)

    def tokens(self, text: str | Sequence[int] | Tensor, *, to_cut: bool = False) -> Tokens:
        """Token ids of a prompt.

        Args:
            text: a text, or token ids already.
            to_cut: it is to be cut up, and may be longer than the context.

        Returns:
            The ids.

        Raises:
            BadInput: an empty prompt, ids that are no whole numbers, a token outside the vocabulary, a prompt
                longer than the context, or a text for a model without tokenizer.
        """
        if isinstance(text, str):
            if self.tokenizer is None:
                raise BadInput(f"{self.source} has no tokenizer: pass token ids, or wrap(module, tokenizer)")
            ids = tuple(int(i) for i in self.tokenizer(text)["input_ids"])
        else:
            ids = _whole_numbers(text)
        if not ids:
            raise BadInput("the prompt is empty: it has no tokens")
        if not to_cut and self.context_length is not None and len(ids) > self.context_length:
            raise BadInput(
                f"the prompt has {len(ids)} tokens, more than the context of {self.context_length} that "
                f"{self.source} was built for; shorten it"
            )
        if self.anatomy is not None and not 0 <= min(ids) <= max(ids) < self.anatomy.vocabulary:
            raise BadInput(
                f"token ids run from {min(ids)} to {max(ids)}, the vocabulary from 0 to {self.anatomy.vocabulary - 1}"
            )
        return ids

    def token_texts(self, tokens: Sequence[int]) -> list[str]:
        """One display string a token.

        A token that holds only some of a character's bytes is shown as those bytes (``<E2><82>``), so that
        nothing is lost and no two tokens are shown alike by accident.

        Args:
            tokens: token ids.

        Returns:
            The strings, one a token.
        """
        if self.tokenizer is None:
            return [str(token) for token in tokens]
        texts = self.tokenizer.batch_decode([[token] for token in tokens], clean_up_tokenization_spaces=False)
        return [
            self._bytes(token) if INCOMPLETE in text else text
            for token, text in zip(tokens, texts, strict=True)
        ]

    def _bytes(self, token: int) -> str:
        raw = str(self.tokenizer.convert_ids_to_tokens(int(token)))  # type: ignore[union-attr]
        values = [_BYTE_OF[char] for char in raw if char in _BYTE_OF]
        return "".join(f"<{value:02X}>" for value in values) if values else raw

    @cached_property
    def _hashes(self) -> dict[tuple[tuple[str, int, int], ...], str]:
        return {}

    def weight_hash(self) -> str:
        """A hash of every weight's name, shape, dtype and bytes; computed anew after a weight was changed.

        Changes are told by PyTorch's own count of them, which leaves out those made through ``.data``.
        """
        state = self.module.state_dict()
        now = tuple((name, tensor.data_ptr(), _changes(tensor)) for name, tensor in state.items())
        if now not in self._hashes:
            self._hashes.clear()
            self._hashes[now] = _hash_of(state)
        return self._hashes[now]

    def sites(self, name: str | None = None) -> list[str]:
        """Every site this architecture has, in the order of the forward pass.

        Args:
            name: keep only this site, at every layer: ``sites("resid_post")``.

        Returns:
            Site names; module paths for a model that is not a decoder.
        """
        if self.anatomy is None:
            names = [path for path, _ in self.module.named_modules() if path]
        else:
            names = available(self.anatomy)
        return (
            names
            if name is None
            else [site for site in names if site == name or site.rpartition(".")[0] == name]
        )


def _whole_numbers(given: Sequence[int] | Tensor) -> Tokens:
    try:
        return tuple(index(i) for i in (given.tolist() if isinstance(given, Tensor) else given))
    except TypeError:
        shown = " ".join(str(given).split())[:60]
        raise BadInput(
            f"token ids are whole numbers, one a token; this was given: {shown}. capture and intervene take several "
            "prompts, as a list"
        ) from None


def _changes(tensor: Tensor) -> int:
    """How often a tensor was changed in place."""
    return 0 if tensor.is_inference() else tensor._version  # pyright: ignore[reportPrivateUsage]


def _hash_of(state: Mapping[str, Tensor]) -> str:
    def digest(name: str) -> bytes:
        tensor = state[name].detach().cpu().contiguous()
        header = f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
        entries = tensor.reshape(-1).view(torch.uint8).numpy().data
        return hashlib.blake2b(entries, key=hashlib.sha256(header).digest()).digest()

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        return hashlib.sha256(b"".join(pool.map(digest, sorted(state)))).hexdigest()


def wrap(
    module: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None, *, layout: Layout | None = None
) -> Model:
    """Study a module of your own.

    Args:
        module: any ``nn.Module``; a decoder's parts are found in its tree.
        tokenizer: a Hugging Face tokenizer, for a language model.
        layout: where a decoder keeps its parts, when its tree is named in a way of its own.

    Returns:
        The model; the module itself, not a copy, put in evaluation mode.
    """
    anatomy = find_anatomy(module, layout) if layout is not None or _looks_like_decoder(module) else None
    return Model(module.eval(), tokenizer, anatomy, type(module).__name__)


def _looks_like_decoder(module: nn.Module) -> bool:
    try:
        find_anatomy(module)
    except BadInput:
        return False
    return True


def _byte_alphabet() -> dict[str, int]:
    """Byte-level tokenizers write a byte as a printable character: itself where it is one, else shifted past 255."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
