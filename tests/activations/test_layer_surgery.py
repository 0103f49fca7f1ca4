"""Layer surgery against full forwards with replaced blocks, where the answer is known, and refused."""

from typing import Any

import numpy as np
import pytest
import torch

import assay
from assay.activations.depth.operations import surgeries
from assay.activations.layer_surgery import LayerSurgery
from assay.errors import BadInput
from assay.estimates.bootstrap import bootstrap
from assay.models.courses import usual
from assay.models.model import Model, wrap
from assay.runs.measurement import from_settings, settings
from families import FAMILIES
from reference.courses_slow import slow_course
from reference.metrics_slow import slow_metrics

NATS = 1e-4  # float32: logits of size 10, summed in another order
INPUTS = torch.randint(3, 101, (6, 7), generator=torch.Generator().manual_seed(1)).tolist()
ALL = ("delete", "swap", "repeat", "skip", "reverse", "shuffle", "copies", "parallel", "drop", "reorder")


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(FAMILIES["llama"].build())


def operate(model: Model, inputs: Any = INPUTS, **changed: Any) -> assay.Result:
    return assay.layer_surgery(model, inputs, **{"baseline_inputs": 0, "resamples": 50, **changed})


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "gemma2"])
def test_every_surgery_is_that_of_a_full_forward(kind: str) -> None:
    model = wrap(FAMILIES[kind].build())
    changed = {"operations": ALL, "draws": 1, "average": False, "read": 3, "seed": 4, "max_rows": 8}
    dataset = operate(model, INPUTS[:2], **changed).dataset
    layers, ids = model.n_layers, torch.tensor(INPUTS[:2])
    made = surgeries(ALL, layers, (), draws=1, seed=4)
    assert dataset["surgery"].values.tolist() == [surgery.name for surgery in made]
    clean = slow_course(model.module, FAMILIES[kind].blocks, ids, usual(layers))
    for surgery in made:
        edited = slow_course(model.module, FAMILIES[kind].blocks, ids, surgery.course)
        expected = torch.stack(
            [slow_metrics(*each, read=[0, 2, 5]) for each in zip(clean, edited, ids, strict=True)]
        )
        found = dataset["effect_by_input"].sel(surgery=surgery.name)
        np.testing.assert_allclose(found, expected, rtol=0, atol=NATS)
    assert float(dataset["unedited_effect"]) <= NATS


def test_what_each_operation_stands_for() -> None:
    def courses(operation: Any, *chosen: int, layers: int = 4, draws: int = 3) -> list[list[Any]]:
        made = surgeries([operation], layers, chosen, draws=draws, seed=1)
        return [[step[0] if len(step) == 1 else step for step in surgery.course] for surgery in made]

    assert courses("delete") == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert courses("delete", 2) == [[0, 1, 3]]
    assert courses("swap") == [[1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 3, 2]]
    assert courses("swap", 3, 0, 2) == [[0, 1, 3, 2]]
    assert courses("repeat", 1, 3) == [[0, 1, 1, 2, 3], [0, 1, 2, 3, 3]]
    assert courses("skip") == [[0, 3]]
    assert courses("reverse", 0, 1, 3) == [[3, 1, 2, 0]]
    assert courses("copies", 1, 2, 3) == [[0, 2, 2, 2]]
    assert courses("parallel", 1, 3) == [[0, (1, 3), 2]]
    for course in courses("shuffle", 1, 2, 3):
        assert course[0] == 0 and sorted(course) == [0, 1, 2, 3]
    dropped = surgeries(["drop"], 10, (), draws=2, seed=0)
    assert [(s.size, len(s.course)) for s in dropped[::2]] == [(k, 10 - k) for k in range(1, 6)]
    order = surgeries(["reorder"], 10, (), draws=20, seed=0)
    tau = {size: np.mean([s.kendall_tau(10) for s in order if s.size == size]) for size in (1, 20)}
    assert 0.4 < tau[1] < 0.95 and abs(tau[20]) < 0.3
    one = surgeries(["swap", "delete"], 4, (1, 2), draws=1, seed=0)
    assert one[0].kendall_tau(4) == pytest.approx(4 / 6) and np.isnan(one[1].kendall_tau(4))


@pytest.mark.parametrize("layers", [2, 3])
def test_what_is_drawn_at_random_is_never_the_usual_course(layers: int) -> None:
    """It would do nothing, and random directions of no size as much."""
    made = surgeries(["shuffle", "reorder"], layers, range(layers), draws=9, seed=3)
    assert usual(layers) not in {surgery.course for surgery in made}
    assert sum(surgery.operation == "shuffle" for surgery in made) == 9
    assert {s.size for s in made if s.operation == "reorder"} >= ({1, 3} if layers == 2 else {1, 2, 3, 4})
    if layers == 2:
        assert all(surgery.kendall_tau(2) == -1 for surgery in made)


def test_random_directions_move_the_stream_as_far(model: Model) -> None:
    """In a linear readout only their size would count; here they must do something, and stay what they are."""
    few, many = (operate(model, baseline_inputs=3, max_rows=rows).dataset for rows in (2, None))
    np.testing.assert_allclose(few["baseline_effect"], many["baseline_effect"], rtol=0, atol=NATS)
    assert (many["baseline_effect"].sel(metric="kl_from_clean") > 20 * NATS).all()
    other = operate(model, baseline_inputs=3, seed=1).dataset
    assert np.abs(other["baseline_effect"] - many["baseline_effect"]).max() > 20 * NATS


def test_intervals_are_bootstrapped_over_inputs_and_over_draws(model: Model) -> None:
    dataset = operate(model, operations=("drop", "delete"), draws=3, resamples=80, seed=2).dataset
    samples = dataset["effect_by_input"].values
    expected = bootstrap(samples, np.random.default_rng(2), resamples=80)
    np.testing.assert_allclose(dataset["effect_high"], expected[3], rtol=1e-12, atol=1e-15)
    own = dataset["effect"].where((dataset["operation"] == "drop") & (dataset["size"] == 1), drop=True)
    group = dataset.sel(group="drop.1")
    np.testing.assert_allclose(group["group_effect"], own.mean("surgery"), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(group["group_effect_stderr"], own.std("surgery", ddof=1) / 3**0.5, rtol=1e-9)
    once = operate(model, operations=("drop",), draws=1).dataset
    assert np.isnan(once["group_effect_low"]).all()


def test_a_layer_that_writes_nothing_can_be_left_out(make_tiny_llama: Any) -> None:
    model = make_tiny_llama(num_hidden_layers=4)
    with torch.no_grad():
        model.module.model.layers[2].self_attn.o_proj.weight.zero_()
        model.module.model.layers[2].mlp.down_proj.weight.zero_()
    inputs = torch.randint(3, 300, (24, 8), generator=torch.Generator().manual_seed(0)).tolist()
    result = operate(model, inputs[:20], operations=("delete", "repeat", "swap"))
    kl = result.dataset["effect"].sel(metric="kl_from_clean")
    idle = ["delete.2", "repeat.2", "swap.1.2", "swap.2.3"]
    assert (kl.sel(surgery=idle) <= NATS).all() and (kl.drop_sel(surgery=idle) > 100 * NATS).all()
    assert (result.dataset["q_value"].sel(metric="loss_difference", surgery=idle) > 0.05).all()
    assert [c.verdict for c in result.checks if c.code in ("S301", "S303")] == ["pass", "pass"]


def test_random_directions_do_as_much_as_a_layer_that_writes_what_is_not_read(make_tiny_llama: Any) -> None:
    """The last layer writes one coordinate, in which no token's logit has a weight."""
    model = make_tiny_llama(num_hidden_layers=4, tie_word_embeddings=False)
    module = model.module
    with torch.no_grad():
        module.lm_head.weight[:, 0] = 0
        module.model.layers[3].self_attn.o_proj.weight[1:] = 0
        module.model.layers[3].mlp.down_proj.weight[1:] = 0
    for layer, expected in ((3, "warn"), (0, "pass")):
        result = operate(model, operations=("delete",), layers=(layer,), baseline_inputs=6)
        assert {check.code: check.verdict for check in result.checks}["S302"] == expected


def test_side_by_side_is_averaged_or_added(model: Model) -> None:
    twice = {"operations": ("parallel",), "layers": (1, 2)}
    averaged, added = (operate(model, average=average, **twice).dataset for average in (True, False))
    assert (averaged.attrs["together"], added.attrs["together"]) == ("averaged", "added")
    assert np.abs(averaged["effect"] - added["effect"]).max() > 20 * NATS


def test_settings_make_the_same_measurement_again(tiny_llama: Model) -> None:
    text = "Mrs Dursley said that Mr Dursley had seen Harry near the old gate in the rain."
    result = operate(tiny_llama, [text, text], length=4, max_inputs=5, layers=(0, 2), operations=("delete",))
    measurement = result.measurement
    assert isinstance(measurement, LayerSurgery) and len(measurement.inputs) == 5
    assert from_settings("layer_surgery", settings(measurement)) == measurement
    assert result.dataset["surgery"].values.tolist() == ["delete.0", "delete.2"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": []}, "the list is empty"),
        ({"max_inputs": 0}, "data set is empty"),
        ({"inputs": [[3, 4, 5], [3, 4]]}, r"the inputs have \[2, 3\] tokens"),
        ({"operations": ()}, "name one or several"),
        ({"operations": ("delete", "delete")}, "each once"),
        ({"layers": (3,)}, r"layers=\(3,\): the model has layers 0 to 2"),
        ({"layers": (-1,)}, "the model has layers 0 to 2"),
        ({"layers": (1, 1)}, "name each once"),
        ({"layers": (1,), "operations": ("swap",)}, "name two or more"),
        ({"layers": (0, 2), "operations": ("swap",)}, "no two of them are neighbours"),
        ({"draws": 0}, "draws=0"),
        ({"read": 7}, "read=7"),
        ({"seed": -1}, "seed=-1"),
        ({"baseline_inputs": -1}, "baseline_inputs"),
        ({"max_rows": 0}, "max_rows=0"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        operate(wrap(FAMILIES["llama"].build()), **{"inputs": INPUTS, **changed})
