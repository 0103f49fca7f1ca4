"""The patching chart and table say what their dataset says."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import vl_convert
import xarray as xr

from assay.errors import BadInput
from assay.report.charts import patching

TOKENS = ["When", " Mary", " and", " John", "</script>", " gave"]


def synthetic(*, heads: int = 0, site: str = "z", positions: int = 6) -> xr.Dataset:
    rng = np.random.default_rng(0)
    dims = ("metric", "layer", "position", *(("head",) if heads else ()))
    shape = (2, 4, positions, *((heads,) if heads else ()))
    effect, stderr = rng.normal(size=shape), rng.uniform(0.1, 1, shape)
    variables = {}
    for name, value in (("effect", effect), ("normalised_effect", effect / 3)):
        parts = {"": value, "_stderr": stderr, "_low": value - 2 * stderr, "_high": value + 2 * stderr}
        variables |= {name + part: (dims, values) for part, values in parts.items()}
    return xr.Dataset(
        {**variables, "baseline_effect": (dims, effect / 10)},
        coords={
            "metric": ["logit_difference", "kl_from_clean"],
            "layer": np.arange(4),
            "position": np.arange(6)[-positions:],
            "token": ("position", TOKENS[-positions:]),
            "differs": ("position", np.isin(np.arange(6), [1, 3])[-positions:]),
            **({"head": np.arange(heads)} if heads else {}),
        },
        attrs={"site": site, "direction": "denoise", "pairs": 5},
    )


def marks(chart: Any) -> Iterator[dict[str, Any]]:
    """Every drawn item of a chart's scene."""

    def walk(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if item.get("marktype") == "rect" and item.get("role") == "mark":
            yield from item["items"]
        for child in item.get("items", []):
            yield from walk(child)

    return walk(vl_convert.vegalite_to_scenegraph(chart.to_dict())["scenegraph"])


def test_the_table_has_one_row_for_each_cell() -> None:
    dataset = synthetic(heads=3)
    table = patching.frame(dataset.transpose("head", ...))
    row = table.query("metric == 'kl_from_clean' and block == 2 and position == 3 and head == 1").iloc[0]
    cell = dataset.sel(metric="kl_from_clean", layer=2, position=3, head=1)
    assert len(table) == dataset["effect"].size
    assert row["effect"] == float(cell["effect"])
    assert row["normalised_effect_low"] == float(cell["normalised_effect_low"])
    assert row["null_effect"] == float(cell["baseline_effect"])
    assert row["differs"]
    assert row["token"] == "·John"


@pytest.mark.parametrize(("site", "part"), [("k", "kv head"), ("v", "kv head"), ("q", "head"), ("z", "head")])
def test_heads_of_keys_and_values_are_named_as_such(site: str, part: str) -> None:
    dataset = synthetic(heads=3, site=site)
    grid, heads = patching.chart(dataset).to_dict()["hconcat"]
    assert grid["title"]["text"] == f"Patching {site}: strongest {part}"
    assert heads["title"]["text"] == f"Each {part}"
    assert heads["encoding"]["x"]["title"] == part
    (told,) = [tip["title"] for tip in heads["encoding"]["tooltip"] if tip["field"] == "head"]
    assert told == part
    assert all(f", {part} " in finding.text for finding in patching.findings(dataset))
    assert patching.figures(dataset)[0].caption.endswith(f"Cells show the strongest {part}.")


def test_what_enters_a_block_has_left_the_one_before() -> None:
    assert sorted(set(patching.frame(synthetic(site="resid_pre"))["block"])) == [-1, 0, 1, 2]
    assert sorted(set(patching.frame(synthetic(site="resid_post"))["block"])) == [0, 1, 2, 3]


def test_cells_whose_interval_includes_zero_are_faded() -> None:
    dataset = synthetic()
    drawn = [mark for mark in marks(patching.chart(dataset)) if mark.get("opacity") in (1, 0.3)]
    own = dataset.sel(metric="logit_difference")
    clear = ((own["effect_low"] > 0) | (own["effect_high"] < 0)).values
    assert 0 < clear.sum() < clear.size
    assert len([mark for mark in drawn if mark["opacity"] == 0.3]) == (~clear).sum()


def test_a_cell_shows_its_strongest_head_and_every_head_has_its_own() -> None:
    drawn = list(marks(patching.chart(synthetic(heads=3), metric="kl_from_clean")))
    assert len(drawn) == 4 * 6 + 4 * 3


def test_positions_that_were_left_out_leave_no_gap() -> None:
    svg = vl_convert.vegalite_to_svg(
        patching.chart(synthetic(positions=3), orientation="layers-right").to_dict()
    )
    assert "·John" in svg and "·Mary" not in svg
    assert patching.figures(synthetic(positions=3))[0].linked is False
    assert patching.figures(synthetic())[0].linked is True


def test_every_metric_is_a_variant_and_hostile_tokens_stay_text() -> None:
    figure = patching.figures(synthetic())[0]
    for options in figure.variants.values():
        assert "</script>" not in vl_convert.vegalite_to_svg(figure.chart(**options).to_dict())
    assert list(figure.variants) == ["logit difference", "kl from clean"]


def test_a_metric_that_was_not_measured_is_refused() -> None:
    with pytest.raises(BadInput, match="this result has logit_difference, kl_from_clean"):
        patching.chart(synthetic(), metric="probability")


def test_findings_name_the_strongest_cell_beside_where_nothing_is() -> None:
    dataset = synthetic(heads=2)
    found = patching.findings(dataset)[1]
    own = dataset["effect"].sel(metric="kl_from_clean").values
    layer, position, head = np.unravel_index(np.abs(own).argmax(), own.shape)
    assert (found.block, found.position) == (layer, position)
    assert f"head {head})" in found.text
    assert f"{own[layer, position, head]:+.3f}" in found.text
    assert f"where nothing is to be found, by {np.abs(own).max() / 10:.3f} at most" in found.text
