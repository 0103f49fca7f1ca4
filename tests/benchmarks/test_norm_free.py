"""A GPT-2 without LayerNorm is the same model in TransformerLens, built from either of its forms."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import assay
from small_gpt2 import python_text, small_gpt2

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers" / "transformer_lens" / "bin" / "python"
NATS = 1e-4  # float32, log-probabilities


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="no environment of the peer: benchmarks/setup.sh makes it")
def test_transformer_lens_gives_the_same_from_both_forms(tmp_path: Path) -> None:
    text, held_out = python_text()
    model = assay.norms.scale(small_gpt2(40), text[:640].view(10, 64), special=())
    assay.norms.export(model, tmp_path)
    ids = held_out[:64].view(2, 32)
    with torch.no_grad():
        logits = model.module(input_ids=ids).logits
    save_file({"tokens": ids, "logits": logits.contiguous()}, tmp_path / "expected.safetensors")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [str(PYTHON), "-m", "benchmarks.peers.norm_free", str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT)
    found = json.loads(said.stdout.splitlines()[-1])
    assert set(found) == {"as it is", "folded", "identity"}
    assert all(difference < NATS for difference in found.values())
