"""The page's file: what it holds, how it is written, what it refuses."""

import json
import re
from pathlib import Path

import pytest

from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.report import contents, write_report
from assay.report.figure import Finding
from assay.report.page import embedded_json
from report import synthetic
from report.results import SyntheticResult


def payload(page: str) -> dict:
    return json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    return write_report(SyntheticResult(synthetic.survey(), "survey"), path).read_text(encoding="utf-8")


def test_the_numbers_are_stored_once(page: str) -> None:
    [section] = payload(page)["sections"]
    large = {name for name, table in section["tables"].items() if len(next(iter(table.values()), [])) > 40}
    assert large == {"logit_lens", "causal_trace", "neuron_importance"}
    assert "datasets" not in json.dumps(section["figures"])
    effects = section["tables"]["causal_trace"]["effect"]
    assert effects == pytest.approx(synthetic.trace()["indirect_effect"].values.ravel(), rel=1e-5)


def test_nothing_is_fetched(page: str) -> None:
    shell = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", shell)
    assert "default-src 'none'" in shell


def test_checks_that_do_not_pass_come_first(page: str) -> None:
    assert page.index("A201") < page.index("A202") < page.index("A203") < page.index('class="figures')
    assert "✕ fails" in page and "! warns" in page and "1 check passes" in page


def test_the_manifest_is_at_the_end_without_its_units(page: str) -> None:
    end = page[page.index('<details class="manifest">') :]
    assert "settings.noise" in end and "model.weight_hash" in end
    assert "position-000" not in page


def test_several_results_make_one_page_with_a_section_each(tmp_path: Path) -> None:
    results = [
        SyntheticResult(synthetic.lens(), "logit_lens"),
        SyntheticResult(synthetic.trace(), "causal_trace"),
    ]
    page = write_report(results, tmp_path / "r.html").read_text(encoding="utf-8")
    assert [len(section["figures"]) for section in payload(page)["sections"]] == [1, 1]
    assert "#result=1&amp;token=" in page


def test_a_finding_marks_what_it_speaks_of_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Finding("Everywhere."), Finding("A layer.", block=2), Finding("A cell.", position=1, block=0)]
    monkeypatch.setattr("assay.report.charts.logit_lens.findings", lambda _: found)
    page = write_report(SyntheticResult(synthetic.lens(), "logit_lens"), tmp_path / "r.html").read_text(
        "utf-8"
    )
    assert "<li>Everywhere.</li>" in page
    assert '<a href="#layer=2">A layer.</a>' in page
    assert '<a href="#token=1&amp;layer=0">A cell.</a>' in page


def test_a_measurement_without_a_chart_still_has_its_checks_and_manifest(tmp_path: Path) -> None:
    page = write_report(SyntheticResult(synthetic.neurons(), "unheard_of"), tmp_path / "r.html").read_text(
        "utf-8"
    )
    assert payload(page)["sections"][0]["figures"] == []
    assert "A201" in page


def test_a_chart_module_needs_no_more_than_a_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("assay.report.charts.neuron_importance.figures")
    monkeypatch.delattr("assay.report.charts.neuron_importance.findings")
    result = SyntheticResult(synthetic.neurons()[["importance"]], "neuron_importance")
    monkeypatch.setattr(
        "assay.report.charts.neuron_importance.chart",
        lambda dataset: (
            __import__("altair").Chart(result.table()).mark_point().encode(x="layer:Q", y="importance:Q")
        ),
    )
    [figure] = contents.figures_of(result)
    page = write_report(result, tmp_path / "r.html").read_text("utf-8")
    assert figure.title == "Neuron importance" and not figure.linked
    assert payload(page)["sections"][0]["figures"][0]["variants"][""][0]["mark"]["type"] == "point"


def test_texts_of_checks_and_manifest_are_escaped(tmp_path: Path) -> None:
    evil = "</p><script>window.hacked=1</script>"
    result = SyntheticResult(synthetic.lens(), "logit_lens", [Check("A1", evil, "fail", None, evil, evil)])
    result.manifest["settings"] = {evil: evil}
    assert evil not in write_report(result, tmp_path / "r.html").read_text("utf-8")


@pytest.mark.parametrize("text", synthetic.HOSTILE)
def test_embedded_json_holds_any_text_and_no_markup(text: str) -> None:
    written = embedded_json({"token": text})
    assert json.loads(written) == {"token": text}
    assert not set(written) & set("<>&\u2028\u2029")


def test_a_page_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")
    write_report(SyntheticResult(synthetic.neurons(), "unheard_of"), path)
    assert [file.name for file in tmp_path.iterdir()] == ["r.html"]
    assert path.read_text("utf-8").startswith("<!doctype html>")


def test_nothing_and_nowhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least one"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(BadInput, match="is a folder"):
        write_report(SyntheticResult(synthetic.lens(), "logit_lens"), tmp_path)
