"""The importance chart and table say what their dataset says."""

import pytest
import vl_convert

from assay.report.charts import neuron_importance
from report import synthetic


def test_the_table_has_one_row_for_each_cell_with_its_top_neurons() -> None:
    dataset = synthetic.neurons()
    table = neuron_importance.frame(dataset)
    row = table[(table["block"] == 3) & (table["position"] == 7)].iloc[0]
    cell = dataset.sel(layer=3, position=7)
    assert len(table) == dataset["importance"].size
    assert row["importance"] == float(cell["importance"])
    assert (row["neuron_2"], row["attribution_2"]) == (
        int(cell["top_neuron"][1]),
        float(cell["top_attribution"][1]),
    )
    assert row["untrained_importance"] == float(cell["baseline_importance"])


def test_the_colour_is_logarithmic_over_four_decades_at_most() -> None:
    dataset = synthetic.neurons()
    dataset["importance"][0, 0] = 1e-30
    scale = neuron_importance.chart(dataset).to_dict()["layer"][0]["encoding"]["color"]["scale"]
    largest = float(dataset["importance"].max())
    assert scale["type"] == "log"
    assert scale["domain"] == pytest.approx([largest * 1e-4, largest])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_importances_that_are_all_equal_are_drawn(value: float) -> None:
    dataset = synthetic.neurons()
    dataset["importance"][:] = value
    vl_convert.vegalite_to_svg(neuron_importance.chart(dataset, orientation="layers-right").to_dict())
    assert len(neuron_importance.findings(dataset)) == 1


def test_the_finding_is_the_largest_cell() -> None:
    dataset = synthetic.neurons()
    dataset["importance"][2, 9] = 7.0
    [finding] = neuron_importance.findings(dataset)
    assert (finding.block, finding.position) == (2, 9)
    assert f"neuron {int(dataset['top_neuron'][2, 9, 0])}" in finding.text
