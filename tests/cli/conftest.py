"""A tiny model as a user has it: a folder, whole or damaged; and the command line in and out of process."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from assay.cli import main
from assay.models.model import Model
from cli.terminal import PROMPT, Outcome


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, make_tiny_llama: Callable[..., Model]) -> Path:
    """A tiny LLaMA with its tokenizer, written by `save_pretrained`."""
    return saved(make_tiny_llama(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def word_folder(tmp_path_factory: pytest.TempPathFactory, make_tiny_llama: Callable[..., Model]) -> Path:
    """The same with a tokenizer that knows the prompt's words and no others."""
    words = {word: index for index, word in enumerate(["<unk>", *dict.fromkeys(PROMPT.split())])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = make_tiny_llama(vocab_size=len(words), bos_token_id=0, eos_token_id=0, pad_token_id=0)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    return saved(
        Model(model.module, fast, model.anatomy, "words"), tmp_path_factory.mktemp("models") / "words"
    )


@pytest.fixture(scope="session")
def nan_folder(tmp_path_factory: pytest.TempPathFactory, make_tiny_llama: Callable[..., Model]) -> Path:
    """The same with one weight that is not a number."""
    model = make_tiny_llama()
    with torch.no_grad():
        model.module.get_submodule("model.layers.0.mlp.up_proj").weight[0, 0] = torch.nan
    return saved(model, tmp_path_factory.mktemp("models") / "nan")


@pytest.fixture(scope="session")
def truncated_folder(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """The same with weights of which the last byte is missing."""
    copy = Path(shutil.copytree(folder, tmp_path_factory.mktemp("models") / "truncated"))
    os.truncate(copy / "model.safetensors", (copy / "model.safetensors").stat().st_size - 1)
    return copy


def saved(model: Model, path: Path) -> Path:
    model.module.save_pretrained(path)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def assay(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """A command of this process."""

    def run(*words: object) -> Outcome:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run
