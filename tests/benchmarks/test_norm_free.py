"""A GPT-2 without LayerNorm is the same model in TransformerLens, built from either of its forms."""

from dataclasses import replace

import pytest
from benchmarks.cases import CASES
from benchmarks.comparison import compare
from benchmarks.conditions import ROOT

from assay.models.model import Model

PYTHON = ROOT / ".venv-peers" / "transformer_lens" / "bin" / "python"
NATS = 1e-4  # float32, log-probabilities


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.skipif(not PYTHON.exists(), reason="no environment of the peer: benchmarks/setup.sh makes it")
def test_every_form_says_the_same(smollm2: Model) -> None:
    case = replace(CASES["norms"], repetitions=1, rehearsals=0)
    record = compare("norms", case, smollm2, device="cpu", threads=1, say=lambda line: None)
    assert set(record["agreement"]) == set(record["contestants"]) - {"norms original", "norms fixed"}
    assert all(error < NATS for found in record["agreement"].values() for error in found.values())
