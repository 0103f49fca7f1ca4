"""The charts about depth, drawn from results of a tiny model: tables as the dataset has them, every variant renders."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import vl_convert
import xarray as xr

import assay
from assay.errors import BadInput
from assay.models.model import Model
from assay.report.charts import layer_horizon, layer_paths, layer_stages, layer_surgery

INPUTS = torch.randint(3, 300, (3, 6), generator=torch.Generator().manual_seed(1)).tolist()
CHARTS: dict[str, Any] = {
    "layer_surgery": layer_surgery,
    "layer_horizon": layer_horizon,
    "layer_paths": layer_paths,
    "layer_stages": layer_stages,
}


@pytest.fixture(scope="module")
def datasets(make_tiny_llama: Callable[..., Model]) -> dict[str, xr.Dataset]:
    model = make_tiny_llama(num_hidden_layers=4)
    few: Any = {"baseline_inputs": 1, "resamples": 20}
    operations = ("delete", "repeat", "skip", "reverse", "drop", "reorder")
    return {
        "layer_surgery": assay.layer_surgery(model, INPUTS, operations=operations, draws=2, **few).dataset,
        "layer_horizon": assay.layer_horizon(model, INPUTS, **few).dataset,
        "layer_paths": assay.layer_paths(model, INPUTS, **few).dataset,
        "layer_stages": assay.layer_stages(model, INPUTS, read=3, **few).dataset,
    }


@pytest.mark.parametrize("name", CHARTS)
def test_every_variant_of_every_figure_renders(name: str, datasets: dict[str, xr.Dataset]) -> None:
    for figure in CHARTS[name].figures(datasets[name]):
        for options in figure.variants.values() if figure.variants else ({},):
            svg = vl_convert.vegalite_to_svg(figure.chart(**options).to_dict())
            assert svg.count("<path") > 5, (figure.name, options)
    assert vl_convert.vegalite_to_svg(CHARTS[name].chart(datasets[name]).to_dict()).count("<path") > 20


@pytest.mark.parametrize("name", CHARTS)
def test_findings_speak_of_the_dataset(name: str, datasets: dict[str, xr.Dataset]) -> None:
    texts = [finding.text for finding in CHARTS[name].findings(datasets[name])]
    assert texts and all(text.endswith(".") and "nan" not in text for text in texts)


def test_tables_hold_every_number(datasets: dict[str, xr.Dataset]) -> None:
    surgery, cells = datasets["layer_surgery"], layer_surgery.frame(datasets["layer_surgery"])
    row = cells.query("metric == 'kl_from_clean' and surgery == 'delete.2'").iloc[0]
    own = surgery.sel(metric="kl_from_clean", surgery="delete.2")
    assert len(cells) == surgery["effect"].size and (row["layer"], row["operation"]) == (2, "delete")
    assert (row["effect"], row["random_effect"]) == (float(own["effect"]), float(own["baseline_effect"]))
    horizon, cells = datasets["layer_horizon"], layer_horizon.frame(datasets["layer_horizon"])
    row = cells.query(
        "metric == 'top1_agreement' and horizon == 3 and forgotten == 'as many at random'"
    ).iloc[0]
    assert row["effect"] == float(horizon["baseline_effect"].sel(metric="top1_agreement", horizon=3))
    paths, cells = datasets["layer_paths"], layer_paths.frame(datasets["layer_paths"])
    row = cells.query("metric == 'loss_difference' and depth == 2").iloc[0]
    assert row["effect_high"] == float(paths["effect_high"].sel(metric="loss_difference", depth=2))
    stages, cells = datasets["layer_stages"], layer_stages.frame(datasets["layer_stages"])
    row = cells.query("curve == 'entropy' and kind == 'model' and layer == 1").iloc[0]
    assert row["value"] == float(stages["stage"].sel(curve="entropy", layer=1))
    row = cells.query("curve == 'suppression' and kind == 'baseline' and layer == 2").iloc[0]
    assert row["high"] == float(stages["baseline_neuron_share_high"].sel(kind="suppression", layer=2)) > 0
    assert set(cells["curve"]) == {"entropy", "kl_to_final", "top1_agreement", "prediction", "suppression"}


@pytest.mark.parametrize("name", ["layer_surgery", "layer_horizon", "layer_paths"])
def test_a_metric_that_is_not_known_is_refused(name: str, datasets: dict[str, xr.Dataset]) -> None:
    with pytest.raises(BadInput, match="metric='los' is not known"):
        CHARTS[name].chart(datasets[name], metric="los")
