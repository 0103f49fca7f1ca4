"""The attribution chart and table say what their dataset says."""

import json

import numpy as np
import vl_convert
import xarray as xr

from assay.report.charts import direct_logit_attribution as charts


def synthetic(*, heads: int = 3, layers: int = 8) -> xr.Dataset:
    rng = np.random.default_rng(0)
    parts = [("embed", -1, -1)]
    for layer in range(layers):
        parts += [
            ("attention", layer, -1),
            ("mlp", layer, -1),
            *(("head", layer, head) for head in range(heads)),
        ]
    value, stderr = rng.normal(size=len(parts)), rng.uniform(0.1, 0.6, len(parts))
    variables = {}
    for name, scale in (("attribution", 1.0), ("direct_effect", 0.8), ("freezing_error", 0.2)):
        ends = {"": value, "_stderr": stderr, "_low": value - 2 * stderr, "_high": value + 2 * stderr}
        variables |= {name + part: ("component", scale * values) for part, values in ends.items()}
    return xr.Dataset(
        {**variables, "baseline_attribution": ("component", stderr), "target": 4.5},
        coords={
            "component": [".".join(str(p) for p in part if p != -1) for part in parts],
            **{
                name: ("component", [part[i] for part in parts])
                for i, name in enumerate(("kind", "layer", "head"))
            },
        },
        attrs={"target": "logit difference", "answer": " </script>", "foil": " John", "prompts": 4},
    )


def test_the_table_has_one_row_for_each_component() -> None:
    dataset = synthetic()
    table = charts.frame(dataset)
    row = table.query("component == 'head.5.1'").iloc[0]
    cell = dataset.sel(component="head.5.1")
    assert len(table) == dataset.sizes["component"]
    assert (row["layer"], row["column"]) == (5, "head 1")
    assert row["direct_effect_low"] == float(cell["direct_effect_low"])
    assert row["random_tokens"] == float(cell["baseline_attribution"])


def test_columns_stand_in_their_order() -> None:
    picture = charts.chart(synthetic(heads=11)).to_dict()
    expected = [*(f"head {head}" for head in range(11)), "attention", "mlp", "embed"]
    assert picture["hconcat"][0]["encoding"]["x"]["sort"] == expected


def test_components_whose_interval_includes_zero_are_faded() -> None:
    dataset = synthetic()
    scene = json.dumps(vl_convert.vegalite_to_scenegraph(charts.chart(dataset).to_dict()))
    unclear = (dataset["attribution_low"] <= 0) & (dataset["attribution_high"] >= 0)
    assert 0 < int(unclear.sum()) < unclear.size
    assert scene.count('"opacity": 0.3') == int(unclear.sum())


def test_only_the_strongest_have_a_line() -> None:
    dataset = synthetic()
    svg = vl_convert.vegalite_to_svg(charts.chart(dataset).to_dict())
    names = dataset["component"].values[np.abs(dataset["attribution"].values).argsort()[::-1]]
    assert all(f">{name}<" in svg for name in names[:20])
    assert not any(f">{name}<" in svg for name in names[20:] if "." in name)


def test_the_caption_names_answer_and_foil() -> None:
    figure = charts.figures(synthetic())[0]
    assert "minus that of “ John”" in figure.caption and "mean over prompts (4)" in figure.caption
    vl_convert.vegalite_to_svg(figure.chart().to_dict())


def test_the_finding_puts_the_true_effect_beside_the_attribution() -> None:
    dataset = synthetic()
    best = int(np.abs(dataset["attribution"].values).argmax())
    text = charts.findings(dataset)[0].text
    assert str(dataset["component"].values[best]) in text
    assert f"{float(dataset['attribution'][best]):+.3g}" in text
    assert f"really takes {float(dataset['direct_effect'][best]):+.3g}" in text
