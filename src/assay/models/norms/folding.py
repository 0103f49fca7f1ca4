r"""Folding: a norm's gain, bias and centring move into the linear layers that read it. Exact.

With a reader :math:`z = W y + c` of a norm :math:`y = \hat x \odot w + b`, :math:`\hat x` being the normalised input,

.. math:: W' = W \operatorname{diag}(w), \qquad c' = c + W b

leaves :math:`z = W' \hat x + c'`. For a LayerNorm the rows of :math:`W'` may be centred as well, since
:math:`\hat x` has mean zero: then only a scale is left of the norm. Source: Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"; the weight processing of TransformerLens.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import BadInput
from assay.models.anatomy import find_anatomy, text_config
from assay.models.model import Model
from assay.models.norms.finding import Linear, Norm, find_norms
from assay.models.norms.fixed import FixedNorm


def fold(model: Model, *, centre: bool = False, untie: bool = True) -> Model:
    r"""Move every norm's gain and bias into the linear layers that read it.

    Norms that are read by other things than linear layers (norms of what attention and MLP write, of queries and keys,
    those before experts) keep theirs; :func:`obstacles` lists them. Norms that are the identity have none.

    Args:
        model: a decoder; it is copied, not changed.
        centre: centre the readers of a LayerNorm too: :math:`W'_{ij} - \frac1d\sum_k W'_{ik}`.
        untie: give the copy an unembedding of its own where it is tied to the embedding, so that the final norm's gain
            has somewhere to go; without it that norm keeps its gain.

    Returns:
        The copy, named as such. Its logits are the model's, up to rounding.

    Raises:
        BadInput: the model has no norms, or none that could be folded.
    """
    copied = copied_model(model)
    norms = [norm for norm in find_norms(copied) if not norm.is_identity]
    blocked = obstacles_of(copied, norms, untie)
    foldable = [norm for norm in norms if norm.name not in blocked]
    if norms and not foldable:
        reasons = ", ".join(f"{name} ({why})" for name, why in list(blocked.items())[:4])
        raise BadInput(f"{model.source} has no norm that could be folded: {reasons}")
    untied = 0
    for norm in foldable:
        untied += absorb(copied, norm, norm.gain, norm.bias, centre=centre and norm.centring)
        make_plain(norm)
    count = "" if len(foldable) == len(norms) else f" {len(foldable)} of {len(norms)}"
    details = [f"the gains of its{count} norms folded", *(["readers centred"] if centre else [])]
    return renamed(copied, [*details, *(["unembedding untied"] if untied else [])])


def obstacles(model: Model, *, untie: bool = True) -> dict[str, str]:
    """Which norms :func:`fold` leaves as they are, and why.

    Args:
        model: a decoder.
        untie: as for :func:`fold`.

    Returns:
        Name of the norm to the reason.

    A model without norms is `BadInput`.
    """
    return obstacles_of(model, find_norms(model), untie)


def obstacles_of(model: Model, norms: Sequence[Norm], untie: bool = True) -> dict[str, str]:
    """:func:`obstacles` among norms that were found before."""
    found: dict[str, str] = {}
    for norm in norms:
        why = norm.obstacle()
        if not why and (others := _others(norm)):
            why = f"its gain cannot be taken from it: it has {', '.join(others)}"
        if not why and not untie and any(is_tied(model, path) for path in norm.readers):
            why = "the unembedding that reads it is tied to the embedding"
        if why:
            found[norm.name] = why
    return found


def _others(norm: Norm) -> list[str]:
    """What a norm holds beside the parameters that :func:`make_plain` knows."""
    if isinstance(norm.module, FixedNorm):
        return []
    known = {"weight", "bias"} & dict(norm.module.named_parameters(recurse=False)).keys()
    return sorted(norm.module.state_dict().keys() - known)


def is_tied(model: Model, path: str) -> bool:
    """Whether a linear layer shares its weight with another module."""
    weight = model.module.get_submodule(path).weight
    owners = [m for m in model.module.modules() if any(p is weight for p in m.parameters(recurse=False))]
    return len(owners) > 1


def absorb(model: Model, norm: Norm, gain: Tensor, bias: Tensor, *, centre: bool) -> bool:
    """Change a norm's readers so that they take its gain, its bias and its centring upon themselves; in place.

    Args:
        model: the copy.
        norm: the norm; something of it is then to be taken away.
        gain: what its readers' columns are multiplied by, float64.
        bias: what they are given besides, float64.
        centre: take the mean out of the readers' rows.

    Returns:
        Whether a reader shared its weight with another module, and was given one of its own.
    """
    untied = False
    for path in norm.readers:
        reader = model.module.get_submodule(path)
        assert isinstance(reader, Linear)
        if is_tied(model, path):
            reader.weight = nn.Parameter(reader.weight.detach().clone())
            _say_untied(model.module)
            untied = True
        with torch.no_grad():
            _absorb_into(reader, gain.flatten(), bias.flatten(), centre)
    return untied


def _absorb_into(reader: Linear, gain: Tensor, shift: Tensor, centre: bool) -> None:
    outward = isinstance(reader, nn.Linear)  # GPT-2's Conv1D keeps its weight (in, out)
    weight = reader.weight.double() if outward else reader.weight.double().T
    added = weight @ shift
    weight = weight * gain
    if centre:
        weight = weight - weight.mean(-1, keepdim=True)
    reader.weight.copy_(weight if outward else weight.T)
    bias: Any = reader.bias  # None where the layer has none, whatever its annotation says
    if bias is not None:
        bias.copy_(bias.double() + added)
    elif bool(added.any()):
        reader.bias = nn.Parameter(added.to(reader.weight.dtype))


def make_plain(norm: Norm) -> None:
    """Take gain and bias away from a norm; in place."""
    parameters = {
        name: p for name, p in norm.module.named_parameters(recurse=False) if name in ("weight", "bias")
    }
    if isinstance(norm.module, FixedNorm):
        norm.module.weight = norm.module.bias = None
        return
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name == "weight":  # a gain of w, or of 1 + w
                offset = (norm.gain.flatten() - parameter.double().flatten()).round()
                parameter.copy_(1 - offset.view_as(parameter))
            else:
                parameter.zero_()


def replace_norm(model: Model, norm: Norm, module: nn.Module) -> None:
    """Put another module in a norm's place; in place."""
    parent, _, name = norm.path.rpartition(".")
    setattr(model.module.get_submodule(parent), name, module)


def copied_model(model: Model) -> Model:
    """A copy that shares nothing with the model, still under its name."""
    module = copy.deepcopy(model.module)
    return Model(module, model.tokenizer, find_anatomy(module, model.parts.layout), model.source)


def renamed(model: Model, details: Sequence[str]) -> Model:
    """The model after its norms were changed: its parts found anew, its source saying what was done."""
    fixed = [part for part in model.module.modules() if isinstance(part, FixedNorm)]
    if any(part.by_position for part in fixed):
        _keep_no_cache(model.module)
    anatomy = find_anatomy(model.module, model.parts.layout)
    return Model(model.module.eval(), model.tokenizer, anatomy, f"{model.source}, {', '.join(details)}")


def _keep_no_cache(module: nn.Module) -> None:
    """Have generation give the whole text each time: of a last token alone no norm could tell the position."""
    for settings in (*_configurations(module), getattr(module, "generation_config", None)):
        if settings is not None and hasattr(settings, "use_cache"):
            settings.use_cache = False


def _configurations(module: nn.Module) -> list[Any]:
    """Of the whole, and of its language model."""
    return [getattr(module, "config", None), text_config(module)]


def _say_untied(module: nn.Module) -> None:
    for config in _configurations(module):
        if getattr(config, "tie_word_embeddings", False):
            setattr(config, "tie_word_embeddings", False)  # noqa: B010 (not every configuration has it)
