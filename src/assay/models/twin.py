"""An untrained twin: the same architecture with weights of the same scale that have learned nothing."""

import copy

import torch
from torch import nn

from assay.models.anatomy import find_anatomy
from assay.models.model import Model


def untrained_twin(model: Model, *, seed: int = 0) -> Model:
    """Make a baseline model: every weight matrix redrawn at its own scale.

    Matrices are Gaussian with the standard deviation they have; vectors (norm weights, biases) have their
    entries shuffled. So the sizes of activations stay what they are, and what the weights say is gone. Tied
    weights stay tied.

    Args:
        model: the model; it is copied, not changed.
        seed: of the draw.

    Returns:
        The twin, with the same tokenizer.
    """
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            _redraw(parameter, torch.Generator(parameter.device).manual_seed(seed * 1_000_003 + index))
    anatomy = None if model.anatomy is None else find_anatomy(module, model.anatomy.layout)
    return Model(module, model.tokenizer, anatomy, f"untrained twin of {model.source}")


def _redraw(parameter: nn.Parameter, generator: torch.Generator) -> None:
    if parameter.ndim > 1:
        parameter.normal_(0.0, float(parameter.std()), generator=generator)
    else:
        order = torch.randperm(parameter.numel(), generator=generator, device=parameter.device)
        parameter.copy_(parameter[order])
