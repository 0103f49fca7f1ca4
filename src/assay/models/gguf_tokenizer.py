"""The tokenizer a GGUF file describes, as a fast Hugging Face tokenizer.

GGUF stores vocabulary, merges and token kinds, and names how text is cut before merging
(``tokenizer.ggml.pre``) instead of spelling it out. The names are those of llama.cpp; only the ones below are
known here, and an unknown one is refused, because a wrong cut gives wrong tokens without any sign.

Sources: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp (names and their regular
expressions); the ``tokenizer.json`` of SmolLM2, Llama 3 and Qwen2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from assay.errors import BadInput

CONTROL, USER_DEFINED = 3, 4
ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
GPT2_SPLIT = ("gpt-2", "phi-2", "olmo", "mpt", "jais", "jina-en", "jina-es", "jina-de")
LLAMA3_SPLIT = ("llama-bpe", "llama3", "llama-v3", "falcon3")
QWEN2_SPLIT = ("qwen2", "deepseek-r1-qwen", "megrez")


def build_tokenizer(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a GGUF file.

    Args:
        metadata: the file's metadata; the ``tokenizer.*`` keys are read.

    Returns:
        A fast tokenizer with special tokens, begin-of-text rule and chat template.

    Raises:
        BadInput: the file names a kind of tokenizer or of pre-tokenizer that is not known here.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend = _byte_level(metadata)
    elif kind == "llama":
        backend = _sentencepiece(metadata)
    else:
        raise BadInput(
            f"The GGUF file has a tokenizer of kind {kind!r}; known are 'gpt2' (byte-level BPE) and 'llama' "
            "(sentencepiece BPE). Load the model from its safetensors folder instead."
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    _add_whole_tokens(backend, tokens, metadata.get("tokenizer.ggml.token_type", ()))
    ids = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in ROLES.items()}
    special = {role: tokens[index] for role, index in ids.items() if index is not None}
    _add_bookends(backend, metadata, special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _byte_level(metadata: Mapping[str, Any]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    vocab = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    pairs = (merge.split(" ") for merge in metadata["tokenizer.ggml.merges"])
    merges = [(left, right) for left, right in pairs]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in LLAMA3_SPLIT))
    tokenizer.pre_tokenizer = _byte_level_split(pre)
    tokenizer.decoder = decoders.ByteLevel()
    if pre in QWEN2_SPLIT:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _byte_level_split(pre: str | None) -> pre_tokenizers.PreTokenizer:
    """How text is cut into the pieces that merges stay within.

    Raises:
        BadInput: the name is not known.
    """
    if pre in GPT2_SPLIT:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in SINGLE_DIGITS:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if pre in (*LLAMA3_SPLIT, *QWEN2_SPLIT):
        digits = r"\p{N}{1,3}" if pre in LLAMA3_SPLIT else r"\p{N}"
        words = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(f"{words}|{rest}"), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    known = ", ".join(sorted((*SINGLE_DIGITS, *GPT2_SPLIT, *LLAMA3_SPLIT, *QWEN2_SPLIT)))
    raise BadInput(
        f"The GGUF file asks for the pre-tokenizer {pre!r}, which is not known here, and guessing it would "
        f"give wrong tokens. Known: {known}. Load the model from its safetensors folder instead."
    )


def _sentencepiece(metadata: Mapping[str, Any]) -> Tokenizer:
    """Llama's sentencepiece BPE: spaces are ``▁``, unknown characters fall back to bytes.

    The file has no merges; those that rebuild the vocabulary are ordered by the score of what they make.
    """
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = generate_merges(vocab, dict(zip(tokens, scores, strict=True)))
    unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    leading_space = metadata.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="first" if leading_space else "never", split=False
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if leading_space else parts)
    return tokenizer


def _add_whole_tokens(tokenizer: Tokenizer, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Tokens that are never cut: control tokens are special, user-defined ones are plain text."""
    control = [text for text, kind in zip(tokens, kinds, strict=False) if kind == CONTROL]
    plain = [text for text, kind in zip(tokens, kinds, strict=False) if kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in plain])


def _add_bookends(tokenizer: Tokenizer, metadata: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """Begin-of-text and end-of-text tokens around every text, where the file asks for them."""
    sentencepiece = metadata["tokenizer.ggml.model"] == "llama"
    bos_by_default = sentencepiece or metadata.get("tokenizer.ggml.pre") in LLAMA3_SPLIT
    first = special.get("bos_token") if metadata.get("tokenizer.ggml.add_bos_token", bos_by_default) else None
    last = special.get("eos_token") if metadata.get("tokenizer.ggml.add_eos_token", False) else None
    ends = [token for token in (first, last) if token is not None]
    if ends:
        single = [token for token in (first, "$A", last) if token is not None]
        pair = [*single, *(f"{token}:1" if token != "$A" else "$B:1" for token in single)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(token, tokenizer.token_to_id(token)) for token in ends]
        )
