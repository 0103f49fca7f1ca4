"""Baselines that are tried on the first inputs alone are compared with the effects on those inputs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import assay
from assay.models.model import Model, wrap
from families import FAMILIES

TRIED = torch.randint(3, 101, (2, 9), generator=torch.Generator().manual_seed(1)).tolist()
OTHERS = [[token] * 9 for token in range(5, 15)]
"""One token over and over: nothing that is done to the model does to them what it does to those."""


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(FAMILIES["gpt2"].build())


@pytest.mark.parametrize(
    ("verb", "code", "settings"),
    [
        (assay.ablate, "B102", {"value": "zero"}),
        (assay.layer_horizon, "H302", {"value": "zero", "reach": "sublayer"}),
        (assay.layer_surgery, "S302", {"operations": ("delete", "swap", "repeat", "reverse")}),
        (assay.layer_paths, "K303", {}),
        (assay.layer_stages, "G302", {}),
    ],
)
def test_inputs_without_a_baseline_do_not_count(
    model: Model, verb: Callable[..., assay.Result], code: str, settings: dict[str, Any]
) -> None:
    few, many = (
        verb(model, inputs, baseline_inputs=2, resamples=20, **settings)
        for inputs in (TRIED, [*TRIED, *OTHERS])
    )
    figures = [check.figure for result in (few, many) for check in result.checks if check.code == code]
    assert len(figures) == 2 and figures[1] == pytest.approx(figures[0], rel=1e-4)
