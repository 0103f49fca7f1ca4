"""The chart of averages says what its dataset says."""

import numpy as np
import pytest
import vl_convert
import xarray as xr

from assay.errors import BadInput
from assay.report.charts import average_trace

ROLES = ["first_subject", "middle_subject", "last_subject", "next", "further", "last"]


def averages(n_layers: int = 5) -> xr.Dataset:
    """Averages whose largest is at the last subject token, in the middle."""
    rng = np.random.default_rng(0)
    effect = 0.01 * rng.uniform(size=(2, 6, n_layers))
    effect[0, 2, 2], effect[1, 5, 3] = 0.4, 0.2
    effect[:, 1] = np.nan  # no fact has a middle token
    cell, parts = ("kind", "role", "layer"), {"": 0.0, "_low": -0.05, "_high": 0.05}
    return xr.Dataset(
        {
            **{f"average_indirect_effect{part}": (cell, effect + shift) for part, shift in parts.items()},
            "average_indirect_effect_stderr": (cell, np.full_like(effect, 0.02)),
            **{f"average_total_effect{part}": 0.5 + shift for part, shift in parts.items()},
            "n_facts": ("role", [9, 0, 12, 12, 11, 12]),
            "n_known": 12,
            "baseline_average_indirect_effect": (cell, 1e-3 * effect),
        },
        coords={"kind": ["state", "mlp"], "role": ROLES, "layer": np.arange(n_layers)},
    )


def test_the_table_has_one_row_for_each_kind_role_and_layer() -> None:
    dataset = averages()
    table = average_trace.frame(dataset.transpose("layer", ...))
    row = table[(table["kind"] == "mlp") & (table["role"] == "last token") & (table["block"] == 3)].iloc[0]
    assert len(table) == dataset["average_indirect_effect"].size
    assert (row["effect"], row["effect_low"], row["facts"]) == (0.2, 0.2 - 0.05, 12)
    assert row["untrained_effect"] == pytest.approx(2e-4)


def test_each_kind_has_its_panel_on_one_scale() -> None:
    picture = average_trace.chart(averages()).to_dict()
    assert [panel["title"] for panel in picture["concat"]] == ["state restored", "MLP outputs restored"]
    assert picture["resolve"]["scale"]["y"] == "shared"
    assert len(average_trace.chart(averages(), kind="mlp").to_dict()["concat"]) == 1


def test_a_line_is_told_by_colour_and_by_dashes() -> None:
    line = average_trace.chart(averages(), kind="state").to_dict()["concat"][0]["layer"][1]["encoding"]
    for channel in ("color", "strokeDash"):
        scale = line[channel]["scale"]
        assert len({str(value) for value in scale["range"]}) == len(scale["domain"]) == len(ROLES)


def test_it_is_drawn_with_and_without_a_baseline() -> None:
    for dataset in (averages(), averages().drop_vars("baseline_average_indirect_effect")):
        svg = vl_convert.vegalite_to_svg(average_trace.chart(dataset).to_dict())
        assert "last subject token" in svg


def test_findings_name_the_largest_of_each_kind() -> None:
    state, mlp = average_trace.findings(averages())
    assert "0.400 [0.350, 0.450], is at the last subject token after block 2, over 12 facts" in state.text
    assert mlp.text.startswith("MLP outputs restored: ")
    assert "at the last token after block 3" in mlp.text
    nothing = averages()
    nothing["average_indirect_effect"] *= np.nan
    assert average_trace.findings(nothing) == []


def test_the_caption_says_how_many_facts_count() -> None:
    (figure,) = average_trace.figures(averages())
    assert "over 12 facts" in figure.caption
    assert "0.500 [0.450, 0.550]" in figure.caption


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(BadInput, match="kind='attn' was not traced: this average has state, mlp"):
        average_trace.chart(averages(), kind="attn")
