"""The ablation chart and table say what their dataset says."""

import json

import numpy as np
import pytest
import vl_convert
import xarray as xr

from assay.errors import BadInput
from assay.report.charts import ablation

METRICS = ("loss_difference", "kl_from_clean", "top1_agreement", "logit_difference")


def synthetic(*, heads: int = 3, neurons: int = 0, layers: int = 8) -> xr.Dataset:
    rng = np.random.default_rng(0)
    parts = [("head", layer, index) for layer in range(layers) for index in range(heads)]
    parts += [("mlp", layer, -1) for layer in range(layers if heads else 0)]
    parts += [("neuron", 1, index) for index in range(neurons)]
    dims, shape = ("metric", "component"), (4, len(parts))
    effect, stderr = rng.normal(size=shape), rng.uniform(0.1, 0.5, shape)
    effect[2] = rng.uniform(0, 1, len(parts))
    q_value = rng.uniform(0, 0.2, shape)
    q_value[1:3] = np.nan
    return xr.Dataset(
        {
            "effect": (dims, effect),
            "effect_stderr": (dims, stderr),
            "effect_low": (dims, effect - 2 * stderr),
            "effect_high": (dims, effect + 2 * stderr),
            "p_value": (dims, q_value / 2),
            "q_value": (dims, q_value),
            "baseline_effect": (dims, effect / 10),
            "clean_loss": ((), 3.25),
        },
        coords={
            "metric": list(METRICS),
            "component": [f"{kind}.{layer}.{index}" for kind, layer, index in parts],
            **{
                name: ("component", [part[i] for part in parts])
                for i, name in enumerate(("kind", "layer", "index"))
            },
        },
        attrs={"value": "position_mean", "inputs": 12, "tokens": 32},
    )


def test_the_table_has_one_row_for_each_metric_and_component() -> None:
    dataset = synthetic(neurons=2)
    table = ablation.frame(dataset.transpose("component", "metric"))
    row = table.query("metric == 'top1_agreement' and component == 'head.5.1'").iloc[0]
    cell = dataset.sel(metric="top1_agreement", component="head.5.1")
    assert len(table) == dataset["effect"].size
    assert (row["layer"], row["column"]) == (5, "head 1")
    assert row["effect"] == float(cell["effect"])
    assert row["change"] == float(cell["effect"]) - 1
    assert row["random_effect"] == float(cell["baseline_effect"])
    assert set(table.loc[table["component"] == "neuron.1.0", "column"]) == {""}


def test_heads_stand_in_their_order_before_the_mlp() -> None:
    picture = ablation.chart(synthetic(heads=12)).to_dict()
    assert picture["hconcat"][0]["encoding"]["x"]["sort"] == [*(f"head {i}" for i in range(12)), "mlp"]


def test_what_was_not_found_is_faded() -> None:
    dataset = synthetic()
    scene = json.dumps(vl_convert.vegalite_to_scenegraph(ablation.chart(dataset).to_dict()))
    expected = int((dataset["q_value"].sel(metric="loss_difference") > 0.05).sum())
    assert 0 < expected < dataset.sizes["component"]
    assert scene.count('"opacity": 0.3') == expected
    untested = json.dumps(
        vl_convert.vegalite_to_scenegraph(ablation.chart(dataset, metric="kl_from_clean").to_dict())
    )
    assert untested.count('"opacity": 0.3') == 0


def test_only_the_strongest_have_a_line() -> None:
    dataset = synthetic()
    svg = vl_convert.vegalite_to_svg(ablation.chart(dataset).to_dict())
    order = np.abs(dataset["effect"].sel(metric="loss_difference").values).argsort()[::-1]
    names = dataset["component"].values[order]
    assert all(f">{name}<" in svg for name in names[:20])
    assert not any(f">{name}<" in svg for name in names[20:])


@pytest.mark.parametrize("metric", METRICS)
def test_single_neurons_alone_are_drawn_without_layers(metric: str) -> None:
    picture = ablation.chart(synthetic(heads=0, neurons=5), metric=metric)
    assert len(picture.to_dict()["hconcat"]) == 1
    assert "neuron.1.4" in vl_convert.vegalite_to_svg(picture.to_dict())


def test_every_metric_is_a_variant_of_the_figure() -> None:
    figure = ablation.figures(synthetic())[0]
    assert list(figure.variants) == [metric.replace("_", " ") for metric in METRICS]
    assert "position mean; 12 inputs of 32 tokens" in figure.caption and "3.250 nats" in figure.caption
    for options in figure.variants.values():
        vl_convert.vegalite_to_svg(figure.chart(**options).to_dict())


def test_a_metric_that_is_not_known_is_refused() -> None:
    with pytest.raises(BadInput, match="metric='loss' is not known"):
        ablation.chart(synthetic(), metric="loss")


def test_the_finding_counts_discoveries_and_names_the_strongest() -> None:
    dataset = synthetic()
    own = dataset.sel(metric="loss_difference")
    best = int(np.abs(own["effect"].values).argmax())
    text = ablation.findings(dataset)[0].text
    assert text.startswith(
        f"{int((own['q_value'] <= 0.05).sum())} of {dataset.sizes['component']} components"
    )
    assert str(own["component"].values[best]) in text
    assert f"{float(own['effect'][best]):+.3g} nats" in text
