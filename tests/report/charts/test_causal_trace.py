"""The trace's chart and table say what its dataset says."""

from typing import Any

import numpy as np
import pytest
import vl_convert
import xarray as xr

from assay.errors import BadInput
from assay.report.charts import causal_trace
from report import synthetic


def opacities(dataset: xr.Dataset) -> list[float]:
    scene = vl_convert.vegalite_to_scenegraph(causal_trace.chart(dataset, kind="state").to_dict())
    return [item["opacity"] for item in cells(scene["scenegraph"])]


def cells(scene: dict[str, Any]) -> list[dict[str, Any]]:
    """Marks of the first layer of a picture, in the order of its table."""
    for mark in scene.get("items", []):
        if mark.get("marktype") == "rect" and mark.get("role") == "mark":
            return mark["items"]
        if found := cells(mark):
            return found
    return []


def test_the_table_has_one_row_for_each_kind_layer_and_position() -> None:
    dataset = synthetic.trace()
    table = causal_trace.frame(dataset.transpose("position", ...))
    row = table[(table["kind"] == "mlp") & (table["block"] == 2) & (table["position"] == 5)].iloc[0]
    cell = dataset.sel(kind="mlp", layer=2, position=5)
    assert len(table) == dataset["p_restored"].size
    assert row["p_restored"] == float(cell["p_restored"])
    assert row["effect_low"] == float(cell["indirect_effect_low"])
    assert row["untrained_effect"] == float(cell["baseline_indirect_effect"])
    assert row["is_subject"]


def test_colours_begin_at_the_corrupted_run() -> None:
    dataset = synthetic.trace()
    picture = causal_trace.chart(dataset, kind="state").to_dict()
    domain = picture["layer"][0]["encoding"]["color"]["scale"]["domain"]
    assert domain == [float(dataset["p_corrupted"]), float(dataset["p_restored"].max())]


def test_cells_whose_interval_includes_zero_are_faded() -> None:
    dataset = synthetic.trace()
    table = causal_trace.frame(dataset).query("kind == 'state'")
    clear = (table["effect_low"] > 0) | (table["effect_high"] < 0)
    assert clear.any() and not clear.all()
    assert opacities(dataset) == [1 if cell else 0.3 for cell in clear]


def test_without_an_interval_nothing_is_faded() -> None:
    dataset = synthetic.trace()
    for part in ("stderr", "low", "high"):
        dataset[f"indirect_effect_{part}"] = np.nan * dataset["indirect_effect"]
    assert set(opacities(dataset)) == {1}
    assert "±" not in causal_trace.findings(dataset)[0].text


def test_the_other_metric_has_its_own_level_interval_and_corrupted_run() -> None:
    dataset = synthetic.trace()
    cell = causal_trace.frame(dataset).query("kind == 'state' and block == 0 and position == 5").iloc[0]
    assert cell["log_effect"] == pytest.approx(cell["log_p_restored"] - np.log(0.05))
    # Student's t with two degrees of freedom: 4.3 standard errors
    assert cell["log_effect_high"] - cell["log_effect"] == pytest.approx(
        4.303 * cell["log_effect_stderr"], rel=1e-3
    )
    picture = causal_trace.chart(dataset, kind="state", metric="log_probability").to_dict()
    assert picture["layer"][0]["encoding"]["color"]["scale"]["domain"][0] == pytest.approx(np.log(0.05))
    with pytest.raises(BadInput, match="probability, log_probability"):
        causal_trace.chart(dataset, metric="accuracy")


def test_an_answer_of_several_tokens_is_shown_in_nats_first() -> None:
    dataset = synthetic.trace().assign_attrs(answer_tokens=[5, 6])
    [figure] = causal_trace.figures(dataset)
    assert next(iter(figure.variants)) == "state, nats"
    assert "nats of its log-probability" in causal_trace.findings(dataset)[0].text
    assert "of its probability" in causal_trace.findings(dataset.assign_attrs(answer_tokens=[5]))[0].text


def test_subject_tokens_are_marked() -> None:
    picture = causal_trace.chart(
        synthetic.trace(subject=(1, 2, 7)), kind="attn", orientation="layers-right"
    ).to_dict()
    strong = [param["value"] for param in picture["params"] if param["name"].endswith("_strong")]
    assert strong == [[1, 2, 7]]


def test_all_kinds_stand_side_by_side() -> None:
    dataset = synthetic.trace().sel(kind=["state", "attn"])
    svg = vl_convert.vegalite_to_svg(causal_trace.chart(dataset).to_dict())
    assert "state restored" in svg and "attention outputs restored" in svg and "MLP" not in svg


def test_a_kind_that_was_not_traced_is_refused() -> None:
    with pytest.raises(BadInput, match="this trace has state, attn"):
        causal_trace.chart(synthetic.trace().sel(kind=["state", "attn"]), kind="mlp")


def test_findings_tell_each_occurrence_of_the_subject_apart() -> None:
    dataset = synthetic.trace(subject=(3, 4, 5, 14, 15))
    found = causal_trace.findings(dataset)
    best = dataset["indirect_effect"].sel(kind="state").max("layer").values
    assert [finding.position for finding in found] == [
        3 + int(best[3:6].argmax()),
        14 + int(best[14:16].argmax()),
    ]
    assert "“Dursley” (tokens 3 to 5)" in found[0].text
    assert f"{best[3:6].max():+.3g}" in found[0].text
