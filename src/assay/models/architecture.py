"""What is computed with the weights, as far as it can be known without computing."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from assay.models.anatomy import text_config

_SILENT = {"architectures", "dtype", "name_or_path", "torch_dtype", "training", "transformers_version"}
"""Names, versions and modes; the dtype is that of the weights."""
_PLAIN = (bool, int, float, str, tuple)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def architecture_hash(module: nn.Module) -> str:
    """Hash what decides a module's outputs beside its weights.

    These are the settings of its configuration, if it has one (epsilon, heads, rotary base, activation, the
    implementation of attention), without paths, names and versions; its tree as PyTorch shows it, which tells the
    classes and, of most layers, their sizes and epsilons; and the numbers and texts that its parts keep as attributes.

    Args:
        module: of any kind.

    Returns:
        Hexadecimal digits, the same in every process.
    """
    config: Any = text_config(module)
    fields = config.to_dict() if hasattr(config, "to_dict") else getattr(config, "__dict__", {})
    attention = getattr(config, "_attn_implementation", None)
    kept = {
        path: {name: value for name, value in _told(vars(part)).items() if isinstance(value, _PLAIN)}
        for path, part in module.named_modules()
    }
    text = json.dumps([_told(fields), attention, repr(module), kept], sort_keys=True, default=repr)
    return hashlib.sha256(_ADDRESS.sub("", text).encode()).hexdigest()


def _told(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if not (name in _SILENT or name.startswith("_"))}
