"""Pictures share the cursor and cannot be moved by what their tokens say."""

import altair as alt
import vl_convert

from assay.report.charts.grid import Grid
from assay.report.text import visible
from report import synthetic


def picture(grid: Grid) -> dict[str, object]:
    rows = [{"position": place, "block": 0} for place in range(len(grid.tokens))]
    cells = alt.Chart(alt.InlineData(values=rows)).mark_rect().encode(**grid.encoding())
    return grid.picture(cells, title="t", subtitle="s").to_dict()


def test_tokens_reach_labels_as_data() -> None:
    hostile = ['"] + alert(1) + ["', "'", "\\", *map(visible, synthetic.HOSTILE)]
    svg = vl_convert.vegalite_to_svg(picture(Grid("g", hostile, [0], "layers-right")))
    assert "alert(1)" in svg
    assert "<script" not in svg


def test_the_cursor_is_two_parameters_and_nothing_else_changes_with_it() -> None:
    spec = picture(Grid("g", ["a", "b"], [-1, 0]))
    names = [param["name"] for param in spec["params"]]
    assert {"cursor_layer", "cursor_position"} <= set(names)
    before = vl_convert.vegalite_to_svg(spec)
    for param in spec["params"]:
        if param["name"] == "cursor_position":
            param["value"] = 1
    after = vl_convert.vegalite_to_svg(spec)
    assert after.count("<path") == before.count("<path") + 1
