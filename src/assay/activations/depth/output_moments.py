"""How neurons' output weights spread over the vocabulary: kurtosis and skewness of what they add to the logits."""

import torch
from torch import Tensor, nn

from assay.models.anatomy import is_centring
from assay.models.model import Model

DIRECTIONS_AT_ONCE = 256


def output_moments(model: Model, *, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Kurtosis and skewness of what each neuron adds to the logits, through the final norm's centring and weight.

    Args:
        model: a decoder whose neurons write straight into the stream.
        seed: of a baseline: each neuron's output weights in an order of their own, drawn by this seed, so that they
            keep their sizes and no longer meet the unembedding's directions. ``None`` for the order they have.

    Returns:
        (layer, neuron) each; a Gaussian has kurtosis 3.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    found = []
    for block in model.parts.blocks:
        assert isinstance(block.mlp_down, nn.Module)  # callers have refused others
        weight = _matrix(block.mlp_down, model.d_model)
        found.append(_moments(model, weight, generator))
    return torch.stack([kurtosis for kurtosis, _ in found]), torch.stack([skewness for _, skewness in found])


def _matrix(down: nn.Module, width: int) -> Tensor:
    """The output weights as (neuron, d_model); the projections of GPT-2 hold them transposed."""
    weight = _weight(down)
    return weight if type(down).__name__ == "Conv1D" else weight.T.reshape(-1, width)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)  # of a projection
    return weight.detach()


def _moments(model: Model, directions: Tensor, shuffling: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Kurtosis and skewness of directions (direction, d_model) over the vocabulary, their entries shuffled or not."""
    norm, unembed = model.parts.final_norm, model.parts.unembed
    assert norm is not None and unembed is not None  # callers have refused others
    centring, weight = is_centring(norm, model.d_model), _weight(unembed)
    gain = _gain(norm, directions[0], centring=centring)
    kurtosis, skewness = [], []
    for some in directions.split(DIRECTIONS_AT_ONCE):
        if shuffling is not None:
            some = some.gather(1, torch.rand(some.shape, generator=shuffling).argsort(1).to(some.device))
        added = ((_read(some, centring=centring) * gain) @ weight.T).float()
        centred = added - added.mean(-1, keepdim=True)
        square = centred.square()
        variance = square.mean(-1)
        kurtosis.append(square.square().mean(-1) / variance.square())
        skewness.append((square * centred).mean(-1) / variance**1.5)
    return torch.cat(kurtosis), torch.cat(skewness)


def _read(directions: Tensor, *, centring: bool) -> Tensor:
    """What the final norm leaves of directions (..., d_model): a LayerNorm takes their mean out."""
    return directions - directions.mean(-1, keepdim=True) if centring else directions


def _gain(norm: nn.Module, like: Tensor, *, centring: bool) -> Tensor:
    """The norm's weight (d_model,), up to a factor that no moment depends on; found by a probe.

    Signs that alternate: no entry of it is 0, its mean taken out or not. The norm of zeros is the bias.
    """
    probe = torch.ones_like(like)
    probe[::2] = -1
    with torch.no_grad():
        seen, bias = (norm(each[None, None])[0, 0] for each in (probe, torch.zeros_like(probe)))
    return (seen - bias) / _read(probe, centring=centring)
