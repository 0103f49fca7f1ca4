r"""Norms switched off in a plain format: a huge epsilon in the configuration, weights scaled up by its root.

.. math:: \frac{x - \bar x}{\sqrt{\mathrm{var}(x) + \epsilon}} \odot \frac{w \sqrt\epsilon}{\sigma} + b
          = \frac{x - \bar x}{\sigma} \odot w + b \quad\text{up to}\quad \frac{\mathrm{var}(x)}{2\epsilon}

With :math:`\epsilon = 10^{12}` the norm divides by :math:`10^6` whatever it is given: any loader that honours the
configured epsilon runs the norm-free model, and one that ignores it another model. Source: the LayerNorm-free GPT-2
published with Heimersheim 2024, 2409.13710, and Baroni et al. 2025, 2507.02559.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from assay.errors import BadInput
from assay.models.anatomy import find_anatomy
from assay.models.model import Model
from assay.models.norms.finding import CONFIGURED, DISABLED, Norm, configured_epsilons, constants, find_norms
from assay.models.norms.fixed import FixedNorm
from assay.models.norms.fixing import remove_in_place
from assay.models.quiet import no_progress_bar

EPSILON, LEAST = 1e12, 1e6
PROBE_LENGTH = 12
AGREEMENT = 1e-3
"""How far the written model's logits may be from the given one's, relative to the largest."""


def export(model: Model, folder: str | Path, *, epsilon: float = EPSILON) -> Path:
    r"""Write a model whose norms divide by constants in the plain format of its family.

    Norm weights become :math:`w\sqrt\epsilon/\sigma`, and ``epsilon`` goes into the configuration.

    Args:
        model: a model from :func:`assay.norms.scale` with ``special=()``, or from removal by fine-tuning.
        folder: where to write it; made if it is not there, and otherwise empty.
        epsilon: of every norm, at least 1e6; the relative error of a norm is var(x) / (2 epsilon).

    Returns:
        The folder, which ``assay.load`` and transformers read.

    Raises:
        BadInput: a norm is live or has scales of its own at some positions, the weights would overflow, the format
            has no place for something, the written model does not give the logits of this one, or there is something
            at that path.
    """
    path = Path(folder)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        what = "is not empty" if path.is_dir() else "is a file"
        raise BadInput(f"{path} {what}: nothing is overwritten; give a new folder")
    if not epsilon >= LEAST:
        raise BadInput(f"epsilon={epsilon:g}: give at least {LEAST:g}, or norms are not switched off")
    norms = find_norms(model)
    for norm in norms:
        _require_constant(model, norm)
    module = _blank(model, epsilon)
    fresh = Model(module, model.tokenizer, find_anatomy(module, model.parts.layout), str(folder))
    state = _without_norms(model, norms)
    for norm in norms:
        state |= _norm_weights(norm, module, epsilon)
    expected = set(module.state_dict())
    if surplus := sorted(set(state) - expected):
        raise BadInput(
            f"the format of {type(module).__name__} has no place for {', '.join(surplus[:3])}: export the model with "
            "its constants, before assay.norms.remove folds them into biases"
        )
    module.load_state_dict(state, strict=False)
    _require_same(model, fresh)
    with no_progress_bar():
        module.save_pretrained(path)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(path)
    return path


def as_identity(model: Model) -> Model:
    """Undo the huge epsilon: weights scaled back and folded, every norm the identity. Changes the model given.

    Args:
        model: just loaded, and nobody else's.

    Returns:
        The model, named as such.

    Raises:
        BadInput: a norm is live, so that without it this would be another model.
    """
    norms = find_norms(model)
    live = [norm for norm in norms if not norm.is_fixed]
    if live:
        named = ", ".join(norm.name for norm in live[:3])
        raise BadInput(
            f"norms='identity' is for models whose norms are switched off by a huge epsilon; in {model.source} "
            f"{len(live)} of {len(norms)} norms are live ({named}: an epsilon of {live[0].epsilon:.3g}). Load it as it "
            "is; assay.norms.scale and assay.norms.remove change its norms, and say so."
        )
    return remove_in_place(model)


def require_range(source: str, settings: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Refuse float16 for a model whose norms are switched off by a huge epsilon.

    Args:
        source: what is loaded, for the message.
        settings: its configuration as JSON.
        dtype: what its weights are to be converted to.

    Raises:
        BadInput: the dtype is float16, and epsilon is huge.
    """
    told = configured_epsilons(settings)
    huge = {name: value for name, value in told.items() if value >= DISABLED}
    if dtype == torch.float16 and huge:
        name, value = next(iter(huge.items()))
        raise BadInput(
            f"{source}: its norms are switched off by {name} = {value:g}, with weights scaled up by {value**0.5:g}; "
            "float16 ends at 65504, and has no such numbers. Load it in bfloat16 or float32, or with "
            "norms='identity', which scales the weights back."
        )


def _require_constant(model: Model, norm: Norm) -> None:
    if not norm.is_fixed:
        raise BadInput(
            f"{model.source}: {norm.name} is live (epsilon {norm.epsilon:.3g}); only norms that divide by a constant "
            "can be written with a huge epsilon. See assay.norms.scale and assay.norms.remove_by_fine_tuning"
        )
    if norm.by_position:
        raise BadInput(
            f"{model.source}: {norm.name} has scales of their own at some positions, which no weight can hold"
        )
    if model.dtype == torch.float16:
        raise BadInput(
            f"{model.source} is in float16, which ends at 65504: norm weights scaled up by the root of epsilon would "
            "overflow. Load it in float32"
        )


def _blank(model: Model, epsilon: float) -> PreTrainedModel:
    """A module of the same class with another epsilon, in the model's dtype."""
    given = model.module
    if not isinstance(given, PreTrainedModel):
        raise BadInput(
            f"{type(given).__name__} is no transformers model: it has no plain format to be written in"
        )
    config = copy.deepcopy(given.config)
    part: Any = config.get_text_config()
    names = [name for name in CONFIGURED if getattr(part, name, None) is not None]
    if not names:
        raise BadInput(
            f"the configuration of {type(given).__name__} sets no epsilon: its norms cannot be switched off by one"
        )
    for name in names:
        setattr(part, name, epsilon)
    return type(given)(config).to(model.dtype).eval()  # type: ignore[arg-type]


def _without_norms(model: Model, norms: Sequence[Norm]) -> dict[str, Tensor]:
    inside = tuple(f"{norm.path}." for norm in norms)
    return {name: t for name, t in model.module.state_dict().items() if not name.startswith(inside)}


def _norm_weights(norm: Norm, module: PreTrainedModel, epsilon: float) -> dict[str, Tensor]:
    """The parameters of one norm with a huge epsilon, by name."""
    plain = module.get_submodule(norm.path)
    _, measured, gain, _ = constants(norm.name, plain, norm.shape)
    if abs(measured / epsilon - 1) > AGREEMENT:
        raise BadInput(
            f"{norm.name} of {type(module).__name__} does not take its epsilon from the configuration"
        )
    scale = norm.module.scale.double() if isinstance(norm.module, FixedNorm) else norm.epsilon**0.5
    wanted = norm.gain * epsilon**0.5 / scale
    found: dict[str, Tensor] = {}
    for kind, values in {"weight": wanted, "bias": norm.bias}.items():
        held = {name: p for name, p in plain.named_parameters() if name.rpartition(".")[2] == kind}
        for index, (name, parameter) in enumerate(held.items()):  # one for all heads, or one for each
            own, offset = values.reshape(-1, *parameter.shape)[index], 0.0
            if kind == "weight":  # the gain is w, or 1 + w
                offset = (gain.reshape(-1, *parameter.shape)[index] - parameter.detach().double()).round()
            found[f"{norm.path}.{name}"] = (own - offset).to(parameter.dtype)
    return found


def _require_same(model: Model, written: Model) -> None:
    """Compare logits on a few tokens: whatever the format has no place for shows here."""
    length = min(PROBE_LENGTH, model.context_length or PROBE_LENGTH)
    ids = torch.arange(length, device=model.device).remainder(model.parts.vocabulary)[None]
    with torch.no_grad():
        before = model.module(input_ids=ids).logits.double()
        after = written.module.to(model.device)(input_ids=ids).logits.double()
    error = float((after - before).abs().max() / before.abs().max())
    if not error <= AGREEMENT:
        raise BadInput(
            f"{model.source} cannot be written in the plain format of {type(model.module).__name__}: its logits would "
            f"change by {error:.1e} of the largest. Gains that the format has no place for, or a centring it adds"
        )
