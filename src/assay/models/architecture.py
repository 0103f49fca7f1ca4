"""What is computed with the weights, as far as it can be known without computing."""

import hashlib
import json
import re
from typing import Any

from torch import nn

from assay.models.anatomy import text_config

_SILENT = {"architectures", "dtype", "torch_dtype", "transformers_version"}
"""Names and versions of a configuration; the dtype is that of the weights."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def architecture_hash(module: nn.Module) -> str:
    """Hash what decides a module's outputs beside its weights.

    These are the settings of its configuration, if it has one (epsilon, heads, rotary base, activation, the
    implementation of attention), without paths, names and versions; and its tree as PyTorch shows it, which tells the
    classes and, of most layers, their sizes and epsilons.

    Args:
        module: of any kind.

    Returns:
        Hexadecimal digits, the same in every process.
    """
    config: Any = text_config(module)
    fields = config.to_dict() if hasattr(config, "to_dict") else getattr(config, "__dict__", {})
    settings = {str(k): v for k, v in fields.items() if not (k in _SILENT or str(k).startswith("_"))}
    attention = getattr(config, "_attn_implementation", None)
    text = json.dumps([settings, attention, repr(module)], sort_keys=True, default=repr)
    return hashlib.sha256(_ADDRESS.sub("", text).encode()).hexdigest()
