"""Every family's norms: what can be done to them is exact, and what cannot is refused with the reason."""

import copy
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import assay
from assay.errors import BadInput
from assay.models.gauges import KeepFloat64
from assay.models.model import Model, wrap
from assay.models.norms.finding import find_norms
from assay.models.norms.folding import copied_model
from assay.models.norms.removable import Step, make_removable, settle
from families import FAMILIES

IDS = torch.randint(3, 101, (3, 9), generator=torch.Generator().manual_seed(0))
EXACT = {torch.float32: 1e-5, torch.float64: 1e-11}  # relative to the largest logit
ONE_AXIS, NO_EPSILON = "rows and positions as one axis", "sets no epsilon"
OWN_EPSILON = "does not take its epsilon from the configuration"
REFUSED = {
    ("opt", "freeze"): ONE_AXIS,
    ("opt", "scale"): ONE_AXIS,
    **{(kind, "export"): NO_EPSILON for kind in ("opt", "opt-post-norm", "olmo", "dbrx", "xglm")},
    **{(kind, "export"): OWN_EPSILON for kind in ("deepseek_v2", "deepseek_v3", "biogpt")},
}
QUICK = ("opt", "olmo", "stablelm")
EVERY = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in FAMILIES]


@cache
def family(kind: str) -> Model:
    return wrap(FAMILIES[kind].build())


def logits(model: Model, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad(), KeepFloat64() if model.dtype == torch.float64 else nullcontext():
        return model.module(input_ids=ids).logits


def same(found: Model, expected: Model, ids: Tensor = IDS) -> bool:
    return near(logits(found, ids), logits(expected, ids))


def near(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() < EXACT[found.dtype] * expected.abs().max())


def fold(model: Model, _: Path) -> None:
    assert same(assay.norms.fold(model), model)


def freeze(model: Model, _: Path) -> None:
    assert same(assay.norms.freeze(model, IDS[1]), model, IDS[1:2])


def scale(model: Model, _: Path) -> None:
    assert not same(assay.norms.scale(model, IDS), model)


def remove(model: Model, _: Path) -> None:
    fixed = assay.norms.scale(model, IDS, special=())
    assert same(assay.norms.remove(fixed), fixed)


def export(model: Model, folder: Path) -> None:
    fixed = assay.norms.scale(model, IDS, special=())
    assay.norms.export(fixed, folder)
    assert same(assay.load(folder), fixed)
    assert same(assay.load(folder, norms="identity"), fixed)


def train_away(model: Model, _: Path) -> None:
    """Removable norms change nothing while alive; each reader's own constant goes into its weights.

    In float64: with constants at random some of these models make a thousand times more of float32's rounding.
    """
    if model.module.config.model_type != "xglm":  # its own code masks with a float32 minimum
        module = copy.deepcopy(model.module).double()
        module.set_experts_implementation("eager")  # the grouped kernel of mixtures knows no float64
        model = wrap(module)
    copied = copied_model(model)
    step = Step(torch.zeros(IDS.shape, dtype=torch.bool), momentum=0.0)
    with ExitStack() as stack:
        made = make_removable(copied, find_norms(copied), step, stack)
        assert same(copied, model)
        step.momentum = None
        for own in made.values():
            own.gone = set(own.groups)
            own.constants.mul_(torch.linspace(0.8, 1.3, len(own.groups)))
        expected = logits(copied)
    settle(copied, find_norms(model), made, ())
    assert near(logits(copied), expected)


@pytest.mark.parametrize("do", [fold, freeze, scale, remove, export, train_away])
@pytest.mark.parametrize("kind", EVERY)
def test_what_can_be_done_is_exact_and_the_rest_refused(
    kind: str, do: Callable[[Model, Path], None], tmp_path: Path
) -> None:
    reason = REFUSED.get((kind, do.__name__))
    if reason is None:
        do(family(kind), tmp_path)
        return
    with pytest.raises(BadInput, match=reason):
        do(family(kind), tmp_path)


@pytest.mark.parametrize("kind", EVERY)
def test_the_report_says_what_is_exact(kind: str) -> None:
    dataset = assay.norms.report(family(kind), IDS.tolist(), resamples=5, by_kind=False).dataset
    exact = {str(way) for way in dataset["way"].values[dataset["exact"].values]}
    assert exact == {"opt": {"fold"}, "xglm": set()}.get(
        kind, {"fold", "freeze"}
    )  # XGLM's code knows no float64
    assert dataset.attrs["without_positions"] == ([f"ln2.{i}" for i in range(3)] if kind == "opt" else [])
