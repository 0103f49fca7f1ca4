"""Figures as files."""

from pathlib import Path

import pandas as pd
import pytest

from assay.errors import BadInput
from assay.report import save_figures
from report import synthetic
from report.results import SyntheticResult

STARTS = {".pdf": b"%PDF", ".svg": b"<svg", ".png": b"\x89PNG", ".csv": b"block,"}


def test_each_variant_is_written_in_each_format(tmp_path: Path) -> None:
    written = save_figures(SyntheticResult(synthetic.neurons(), "neuron_importance"), tmp_path / "figures")
    assert sorted(path.name for path in written) == [
        f"neuron_importance.{kind}" for kind in ("csv", "pdf", "png", "svg")
    ]
    assert all(path.read_bytes().startswith(STARTS[path.suffix]) for path in written)
    variants = save_figures(SyntheticResult(synthetic.trace(), "causal_trace"), tmp_path, ["svg"])
    assert [path.stem for path in variants] == [
        *("causal_trace-state", "causal_trace-mlp", "causal_trace-attn"),
        *(f"causal_trace-{kind}-nats" for kind in ("state", "mlp", "attn")),
    ]


def test_fonts_are_embedded_in_pdf(tmp_path: Path) -> None:
    [pdf] = save_figures(SyntheticResult(synthetic.neurons(), "neuron_importance"), tmp_path, ["pdf"])
    assert b"/FontFile" in pdf.read_bytes()


def test_layers_run_the_way_that_was_asked(tmp_path: Path) -> None:
    result = SyntheticResult(synthetic.neurons(), "neuron_importance")
    [down] = save_figures(result, tmp_path / "down", ["svg"])
    [right] = save_figures(result, tmp_path / "right", ["svg"], orientation="layers-right")
    assert down.read_text() != right.read_text()


def test_the_csv_is_inert_in_a_spreadsheet(tmp_path: Path) -> None:
    [path] = save_figures(
        SyntheticResult(synthetic.neurons(synthetic.HOSTILE), "neuron_importance"), tmp_path, ["csv"]
    )
    tokens = pd.read_csv(path)["token"]
    assert "'=1+1" in set(tokens)
    assert not tokens.str.match(r"[=+\-@]").any()


def test_an_unknown_format_or_measurement_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Format gif is not known"):
        save_figures(SyntheticResult(synthetic.neurons(), "neuron_importance"), tmp_path, ["gif", "svg"])
    with pytest.raises(BadInput, match="has no chart"):
        save_figures(SyntheticResult(synthetic.neurons(), "unheard_of"), tmp_path)
