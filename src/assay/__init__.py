"""Assay measures what a neural network has learned, in its weights and in its activations.

The public verbs are imported when they are first used, so ``import assay`` itself is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from assay import zoo
    from assay.activations import norms
    from assay.activations.ablation import ablate
    from assay.activations.attribution import attribution_patch
    from assay.activations.average_trace import average_causal_trace
    from assay.activations.causal_trace import causal_trace
    from assay.activations.direct_logit_attribution import direct_logit_attribution
    from assay.activations.faithfulness import faithfulness
    from assay.activations.layer_horizon import layer_horizon
    from assay.activations.layer_paths import layer_paths
    from assay.activations.layer_stages import layer_stages
    from assay.activations.layer_surgery import layer_surgery
    from assay.activations.logit_lens import logit_lens
    from assay.activations.neuron_importance import neuron_importance
    from assay.activations.patching import patch
    from assay.activations.path_patching import path_patch
    from assay.activations.survey import survey
    from assay.errors import BadInput
    from assay.landscape import known
    from assay.landscape.calibrate import calibrate
    from assay.landscape.learning_coefficient import learning_coefficient
    from assay.landscape.refined_learning_coefficients import refined_learning_coefficients
    from assay.landscape.trajectory import trajectory
    from assay.landscape.watch import watch
    from assay.models.anatomy import Layout
    from assay.models.edits import at
    from assay.models.intervention import capture, intervene
    from assay.models.loading import load, wrap
    from assay.models.partial import partial_forward
    from assay.runs.result import Result

__version__ = "0.1.0"

__all__ = [
    "BadInput",
    "Layout",
    "Result",
    "__version__",
    "ablate",
    "at",
    "attribution_patch",
    "average_causal_trace",
    "calibrate",
    "capture",
    "causal_trace",
    "direct_logit_attribution",
    "faithfulness",
    "intervene",
    "known",
    "layer_horizon",
    "layer_paths",
    "layer_stages",
    "layer_surgery",
    "learning_coefficient",
    "load",
    "logit_lens",
    "neuron_importance",
    "norms",
    "partial_forward",
    "patch",
    "path_patch",
    "refined_learning_coefficients",
    "survey",
    "trajectory",
    "watch",
    "wrap",
    "zoo",
]

_HOMES = {
    "BadInput": "assay.errors",
    "Layout": "assay.models.anatomy",
    "Result": "assay.runs.result",
    "ablate": "assay.activations.ablation",
    "at": "assay.models.edits",
    "attribution_patch": "assay.activations.attribution",
    "average_causal_trace": "assay.activations.average_trace",
    "calibrate": "assay.landscape.calibrate",
    "capture": "assay.models.intervention",
    "causal_trace": "assay.activations.causal_trace",
    "direct_logit_attribution": "assay.activations.direct_logit_attribution",
    "faithfulness": "assay.activations.faithfulness",
    "intervene": "assay.models.intervention",
    "layer_horizon": "assay.activations.layer_horizon",
    "layer_paths": "assay.activations.layer_paths",
    "layer_stages": "assay.activations.layer_stages",
    "layer_surgery": "assay.activations.layer_surgery",
    "learning_coefficient": "assay.landscape.learning_coefficient",
    "load": "assay.models.loading",
    "logit_lens": "assay.activations.logit_lens",
    "neuron_importance": "assay.activations.neuron_importance",
    "partial_forward": "assay.models.partial",
    "patch": "assay.activations.patching",
    "path_patch": "assay.activations.path_patching",
    "refined_learning_coefficients": "assay.landscape.refined_learning_coefficients",
    "survey": "assay.activations.survey",
    "trajectory": "assay.landscape.trajectory",
    "watch": "assay.landscape.watch",
    "wrap": "assay.models.loading",
}

_MODULES = {"known": "assay.landscape.known", "norms": "assay.activations.norms", "zoo": "assay.zoo"}
"""Public names that are modules themselves, with functions of their own."""


def __getattr__(name: str) -> object:
    """Import a public verb from its home on first use, and keep it here."""
    home = _HOMES.get(name) or _MODULES.get(name)
    if home is None:
        raise AttributeError(f"module 'assay' has no attribute {name!r}; public names: {', '.join(__all__)}")
    module = import_module(home)
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
