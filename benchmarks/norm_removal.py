"""Remove the norms of a small GPT-2 by fine-tuning, beside plain fine-tuning.

    python -m benchmarks.norm_removal FOLDER

Writes the figure of docs/norms.md, and prints what its table says. About three minutes of one core; the state is kept
in the folder, and the same command goes on where it was stopped.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import altair as alt
import pandas as pd
import torch
from tests.small_gpt2 import LENGTH, python_text, small_gpt2

import assay
from assay.models.model import Model
from assay.models.norms.recipe import Group
from assay.report.theme import config
from benchmarks.conditions import ROOT

TRAINING_STEPS = 1000
ROWS = 128
RECIPE = assay.norms.Recipe(steps=300, rows=16, held_out_rows=ROWS, gaps=(6, 6, 6, 6, 6, 6, 20))
SAID: dict[Group, str] = {
    "mlp": "MLPs", "qk": "queries and keys", "v": "values", "final": "final norm", "positions": "first position",
}  # fmt: skip


def main() -> None:
    """Train, fine-tune both ways, write, read back, compare, draw."""
    torch.set_num_threads(1)
    text, held_out = python_text()
    model = small_gpt2(TRAINING_STEPS)
    rows = []
    removals = {}
    for name, recipe in {"with its norms": RECIPE.plain(), "norms removed": RECIPE}.items():
        found = removals[name] = assay.norms.remove_by_fine_tuning(
            model, text, held_out, recipe=recipe, folder=Path(sys.argv[1]) / name
        )
        print(name, f"{found.loss_before:.4f} -> {found.loss_after:.4f}", found.stopped or "nothing undone")
        rows += [{"step": step, "loss": loss, "fine-tuned": name} for step, loss in found.history]
    free = removals["norms removed"]
    print({name: round(value, 4) for name, value in free.constants.items()})
    everything = assay.norms.scale(model, text[: 64 * LENGTH].view(-1, LENGTH), special=(0,))
    windows = held_out[: ROWS * LENGTH + 1].unfold(0, LENGTH + 1, LENGTH)
    print("all fixed at once, without training:", f"{loss_of(everything, windows):.4f}")
    with tempfile.TemporaryDirectory() as folder:
        assay.norms.export(free.model, folder)
        for norms in ("kept", "identity"):
            loaded = assay.load(folder, norms=norms)
            print(
                f"read back, norms {norms}: {loss_of(loaded, windows):.4f}, {direct_error(loaded, windows)}"
            )
    print(f"with its norms: {direct_error(removals['with its norms'].model, windows)}")
    draw(pd.DataFrame(rows), starts(free.removed), ROOT / "docs" / "norms.svg")
    print(dataclasses.asdict(RECIPE))


def direct_error(model: Model, windows: torch.Tensor) -> str:
    """How far direct logit attribution is from the true direct effect, at most."""
    found = assay.direct_logit_attribution(model, windows[:16, :-1].tolist()).dataset
    return f"error of the direct path {float(abs(found['freezing_error']).max()):.1e} logits"


def loss_of(model: Model, windows: torch.Tensor) -> float:
    """Mean loss of windows, nats a byte."""
    with torch.no_grad():
        logits = model.module(input_ids=windows[:, :-1]).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


def starts(removed: Mapping[str, int]) -> pd.DataFrame:
    """The first step of each group of removals."""
    found: dict[str, int] = {}
    for name, step in removed.items():
        group = name.removeprefix("special ").partition(" of ")[0]
        found.setdefault(SAID[group], step)  # type: ignore[index]
    return pd.DataFrame({"group": list(found), "step": list(found.values())})


def draw(table: pd.DataFrame, groups: pd.DataFrame, path: Path) -> None:
    """Held-out loss by step, a point wherever it was judged, and where each group of removals begins."""
    base = alt.Chart(table, width=560, height=240).encode(
        x=alt.X("step:Q", title="step of fine-tuning"),
        y=alt.Y("loss:Q", title="held-out loss (nats a byte)", scale=alt.Scale(zero=False)),
        color=alt.Color("fine-tuned:N", title=None),
    )
    marks = alt.Chart(groups).encode(x="step:Q")
    text = marks.mark_text(angle=270, align="left", baseline="top", dx=2, dy=3, fontSize=9)
    chart = alt.layer(
        marks.mark_rule(opacity=0.4),
        text.encode(text="group:N", y=alt.value(240)),
        base.mark_line(opacity=0.5),
        base.mark_point(filled=True, size=30),
    )
    chart.configure(**config("light")).save(path)


if __name__ == "__main__":
    main()
