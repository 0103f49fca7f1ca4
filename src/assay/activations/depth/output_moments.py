"""How neurons' output weights spread over the vocabulary: kurtosis and skewness of what they add to the logits."""

import torch
from torch import Tensor, nn

from assay.models.model import Model

DIRECTIONS_AT_ONCE = 256


def output_moments(model: Model) -> tuple[Tensor, Tensor]:
    """Kurtosis and skewness of what each neuron adds to the logits, through the final norm's weight.

    Args:
        model: a decoder whose neurons write straight into the stream.

    Returns:
        (layer, neuron) each; a Gaussian has kurtosis 3.
    """
    found = []
    for block in model.parts.blocks:
        assert isinstance(block.mlp_down, nn.Module)  # callers have refused others
        weight = _matrix(block.mlp_down, model.d_model)
        found.append(_moments(model, weight))
    return torch.stack([kurtosis for kurtosis, _ in found]), torch.stack([skewness for _, skewness in found])


def random_moments(model: Model, count: int, seed: int) -> Tensor:
    """The same of random directions: kurtosis and skewness, (2, direction)."""
    drawn = torch.randn(count, model.d_model, generator=torch.Generator().manual_seed(seed))
    return torch.stack(_moments(model, drawn.to(model.device, model.dtype)))


def _matrix(down: nn.Module, width: int) -> Tensor:
    """The output weights as (neuron, d_model); the projections of GPT-2 hold them transposed."""
    weight = _weight(down)
    return weight if type(down).__name__ == "Conv1D" else weight.T.reshape(-1, width)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)  # of a projection
    return weight.detach()


def _moments(model: Model, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Kurtosis and skewness of directions (direction, d_model) over the vocabulary."""
    gain = _gain(model)
    unembed = model.parts.unembed
    assert unembed is not None  # callers have refused others
    weight = _weight(unembed)
    kurtosis, skewness = [], []
    for some in directions.split(DIRECTIONS_AT_ONCE):
        added = ((some * gain) @ weight.T).float()
        centred = added - added.mean(-1, keepdim=True)
        square = centred.square()
        variance = square.mean(-1)
        kurtosis.append(square.square().mean(-1) / variance.square())
        skewness.append((square * centred).mean(-1) / variance**1.5)
    return torch.cat(kurtosis), torch.cat(skewness)


def _gain(model: Model) -> Tensor:
    """The final norm's weight, found by a probe of mean 0 and mean square 1, and a bias taken off."""
    norm = model.parts.final_norm
    assert norm is not None  # callers have refused others
    probe = torch.ones(model.d_model, dtype=model.dtype, device=model.device)
    probe[::2] = -1
    with torch.no_grad():
        seen, bias = (norm(each[None, None])[0, 0] for each in (probe, torch.zeros_like(probe)))
    return (seen - bias) * probe
