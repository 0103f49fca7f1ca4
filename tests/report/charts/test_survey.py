"""The survey puts the three pictures side by side on the same layers."""

import pytest
import vl_convert

from assay.report.charts import survey
from report import synthetic


@pytest.mark.parametrize("orientation", ["layers-down", "layers-right"])
def test_the_three_stand_side_by_side(orientation: str) -> None:
    svg = vl_convert.vegalite_to_svg(
        survey.chart(synthetic.survey(), orientation=orientation, colour="kl").to_dict()
    )
    assert all(
        title in svg
        for title in ("Logit lens", "Causal trace: state restored", "Mean layer importance", "KL(final")
    )


def test_layers_are_on_the_same_lines() -> None:
    pictures = survey.chart(synthetic.survey(n_layers=4)).to_dict()["hconcat"]
    domains = [picture["layer"][0]["encoding"]["y"]["scale"]["domain"] for picture in pictures]
    assert domains == [[-1, 0, 1, 2, 3]] * 3


def test_findings_begin_with_what_the_later_occurrence_owes() -> None:
    found = survey.findings(synthetic.survey())
    assert found[0].text.startswith("To predict “s”")
    assert any("surprise" in finding.text for finding in found)
    assert found[-1].text.startswith("MLP neurons")
