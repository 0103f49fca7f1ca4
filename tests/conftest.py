"""Shared material: shape and type checking switched on, the embedded model, a tiny model, a browser."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator

import pytest
from jaxtyping import install_import_hook

# Before anything imports a room: from here on every annotated shape and type of the library is enforced.
install_import_hook("assay", "checking.typechecked")

import torch
from playwright.sync_api import Browser, sync_playwright
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import assay
from assay.models.model import Model

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a shell, and so would be every process the tests start and stop by Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

CHROMIUM_FLAGS = [
    "--no-sandbox",  # Chromium refuses to run as root, the user of most containers, with it
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

CORPUS = (
    "Mrs Dursley said that Mr Dursley had seen Harry near the old gate in the rain.",
    "The Eiffel Tower is located in the city of Paris, and the Colosseum is in Rome.",
    'When Mary and John went to the store, John gave a drink to Mary; "thank you", she said.',
)


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """Use at most two threads: tiny models gain nothing from more. `OMP_NUM_THREADS=1` still gives one."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def smollm2() -> Model:
    """The embedded SmolLM2-135M-Instruct in float32; read only."""
    return assay.load("smollm2")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 400 tokens, learned here: any text round-trips through it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=1,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=128
    )


@pytest.fixture(scope="session")
def make_tiny_llama(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Model]:
    """A function that makes a fresh tiny LLaMA, the same at each call; its arguments go to `LlamaConfig`."""

    def make(**settings: object) -> Model:
        config = LlamaConfig(
            **{
                "vocab_size": len(tiny_tokenizer),
                "hidden_size": 32,
                "intermediate_size": 56,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128,
                "initializer_range": 0.2,  # ten times the default, so that the tiny model has opinions
                "bos_token_id": tiny_tokenizer.bos_token_id,
                "eos_token_id": tiny_tokenizer.eos_token_id,
                "pad_token_id": tiny_tokenizer.pad_token_id,
                **settings,
            }
        )
        with torch.random.fork_rng(devices=[]):  # transformers draws weights from the global generator only
            torch.manual_seed(0)
            module = LlamaForCausalLM(config).eval()
        return assay.wrap(module, tiny_tokenizer)

    return make


@pytest.fixture
def tiny_llama(make_tiny_llama: Callable[..., Model]) -> Model:
    """A fresh random LLaMA of three layers with a tokenizer; a test may change it."""
    return make_tiny_llama()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A headless system Chromium. Without one, tests that need it are skipped; with CI=true they fail."""
    executable = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if executable is None:
        message = (
            f"no Chromium on PATH (looked for {', '.join(CHROMIUM_NAMES)}), so the report cannot be opened. "
            "Install it: `apt-get install chromium` on Debian or Ubuntu, `brew install chromium` on a Mac."
        )
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()
