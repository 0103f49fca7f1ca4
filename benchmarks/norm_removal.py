"""Remove the norms of a small GPT-2 by fine-tuning, beside plain fine-tuning: `python -m benchmarks.norm_removal`.

Writes the figure of docs/norms.md, and prints what its table says. About two minutes of one core.
"""

import dataclasses
import tempfile
from pathlib import Path

import altair as alt
import pandas as pd
import torch
from tests.small_gpt2 import LENGTH, python_text, small_gpt2

import assay
from assay.models.model import Model
from assay.report.theme import config
from benchmarks.conditions import ROOT

TRAINING_STEPS = 1000
ROWS = 128
RECIPE = assay.norms.Recipe(steps=300, rows=16, held_out_rows=ROWS, gaps=(6, 6, 6, 6, 6, 6, 20))


def main() -> None:
    """Train, fine-tune both ways, write, read back, compare, draw."""
    torch.set_num_threads(1)
    text, held_out = python_text()
    model = small_gpt2(TRAINING_STEPS)
    rows = []
    removals = {}
    for name, recipe in {"with its norms": RECIPE.plain(), "norms removed": RECIPE}.items():
        found = removals[name] = assay.norms.remove_by_fine_tuning(model, text, held_out, recipe=recipe)
        print(name, f"{found.loss_before:.4f} -> {found.loss_after:.4f}", found.stopped or "nothing undone")
        rows += [{"step": step, "loss": loss, "fine-tuned": name} for step, loss in found.history]
    everything = assay.norms.scale(model, text[: 64 * LENGTH].view(-1, LENGTH), special=(0,))
    windows = held_out[: ROWS * LENGTH + 1].unfold(0, LENGTH + 1, LENGTH)
    print("all fixed at once, without training:", f"{loss_of(everything, windows):.4f}")
    with tempfile.TemporaryDirectory() as folder:
        assay.norms.export(removals["norms removed"].model, folder)
        for norms in ("kept", "identity"):
            loaded = assay.load(folder, norms=norms)
            direct = assay.direct_logit_attribution(loaded, windows[:16, :-1].tolist()).dataset
            error = float(abs(direct["freezing_error"]).max())
            print(
                f"read back, norms {norms}: {loss_of(loaded, windows):.4f}, error of the direct path {error:.1e}"
            )
    alive = assay.direct_logit_attribution(
        removals["with its norms"].model, windows[:16, :-1].tolist()
    ).dataset
    print(f"error of the direct path with norms {float(abs(alive['freezing_error']).max()):.1e}")
    draw(pd.DataFrame(rows), ROOT / "docs" / "norms.svg")
    print(dataclasses.asdict(RECIPE))


def loss_of(model: Model, windows: torch.Tensor) -> float:
    """Mean loss of windows, nats a byte."""
    with torch.no_grad():
        logits = model.module(input_ids=windows[:, :-1]).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


def draw(table: pd.DataFrame, path: Path) -> None:
    """Held-out loss by step, a point wherever it was judged."""
    base = alt.Chart(table, width=460, height=220).encode(
        x=alt.X("step:Q", title="step of fine-tuning; norms go from step 20 to 80"),
        y=alt.Y("loss:Q", title="held-out loss (nats a byte)", scale=alt.Scale(zero=False)),
        color=alt.Color("fine-tuned:N", title=None),
    )
    chart = alt.layer(base.mark_line(opacity=0.5), base.mark_point(filled=True, size=30))
    chart.configure(**config("light")).save(path)


if __name__ == "__main__":
    main()
