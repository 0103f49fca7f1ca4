"""Causal trace: how much of the answer's probability comes back when one place is restored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr

from assay.errors import BadInput
from assay.report.charts.grid import Grid, Orientation
from assay.report.figure import Bar, Figure, Finding, Readout
from assay.report.text import visible
from assay.report.theme import finished

_TITLES = {
    "state_mlp_severed": "state restored, MLPs severed",
    "state_attn_severed": "state restored, attention severed",
    "state": "state restored",
    "mlp": "MLP outputs restored",
    "attn": "attention outputs restored",
}


@dataclass(frozen=True)
class _Metric:
    restored: str  # column of the level with one place restored
    effect: str  # column of the level minus that of the corrupted run; its interval has the suffixes _low and _high
    title: str  # around the answer
    unit: str  # of an effect


_METRICS = {
    "probability": _Metric("p_restored", "effect", "p({})", "of its probability"),
    "log_probability": _Metric(
        "log_p_restored", "log_effect", "log p({}) (nats)", "nats of its log-probability"
    ),
}
_TABLE = "causal_trace"
_FADED = 0.3


def chart(
    dataset: xr.Dataset,
    *,
    kind: str = "all",
    metric: str | None = None,
    orientation: Orientation = "layers-down",
    blocks: Sequence[int] | None = None,
) -> alt.LayerChart | alt.HConcatChart:
    """Draw a causal trace, ready to show or save.

    Args:
        dataset: result of `assay.causal_trace`.
        kind: what was restored; ``"all"`` puts the kinds of the dataset side by side.
        metric: ``"probability"`` of the answer, or ``"log_probability"`` in nats, which also shows what raises
            an answer from very unlikely to unlikely. By default probability for an answer of one token, nats
            for several, whose joint probability a single place can hardly bring back.
        orientation: ``"layers-down"`` or ``"layers-right"``.
        blocks: layers to make room for; those of the dataset when not given.

    Returns:
        An Altair chart in the light theme.

    Raises:
        BadInput: when `kind` or `metric` is not in the dataset, or `orientation` is not known.
    """
    kinds = [str(name) for name in dataset["kind"].values]
    if kind not in {*kinds, "all"}:
        raise BadInput(
            f"kind={kind!r} was not traced: this trace has {', '.join(kinds)}; 'all' shows every one."
        )
    metric = metric or _metrics(dataset)[0]
    if metric not in _metrics(dataset):
        raise BadInput(f"metric={metric!r} is not drawn: choose one of {', '.join(_metrics(dataset))}.")
    cells = frame(dataset)
    shown = kinds if kind == "all" else [kind]
    ways: dict[str, Any] = {"metric": metric, "orientation": orientation, "blocks": blocks}
    panels = [panel(dataset, cells, kind=name, **ways) for name in shown]
    picture = panels[0] if len(panels) == 1 else alt.hconcat(*panels).resolve_scale(color="shared")
    return finished(picture, {_TABLE: cells})


def panel(
    dataset: xr.Dataset,
    cells: pd.DataFrame,
    *,
    kind: str,
    metric: str,
    orientation: str = "layers-down",
    blocks: Sequence[int] | None = None,
) -> alt.LayerChart:
    """Draw one kind of the trace from its table, without a configuration, to be put beside others."""
    chosen = _METRICS[metric]
    what = chosen.title.format(visible(str(dataset.attrs["answer"])))
    tokens = cells.drop_duplicates("position").sort_values("position")
    subject = tokens.loc[tokens["is_subject"], "position"]
    grid = Grid(
        name=f"causal_trace_{kind}",
        tokens=list(tokens["token"]),
        blocks=list(blocks) if blocks is not None else sorted(set(cells["block"])),
        orientation=orientation,
        strong=frozenset(int(position) for position in subject),
    )
    fill = alt.Color(
        f"{chosen.restored}:Q",
        scale=alt.Scale(domain=_domain(dataset, cells, metric), clamp=True),
        legend=alt.Legend(title=f"{what} restored; low end: corrupted run", format=".2~g"),
    )
    low, high = f"datum.{chosen.effect}_low", f"datum.{chosen.effect}_high"
    clear = f"!isValid({low}) || {low} > 0 || {high} < 0"
    base = alt.Chart(alt.NamedData(name=_TABLE)).transform_filter(f"datum.kind === '{kind}'")
    stderr = f"datum.{chosen.effect}_stderr"
    spread = f"isValid({stderr}) ? ' ± ' + format({stderr}, '.3~g') : ''"
    shown = f"format(datum.{chosen.effect}, '+.3~g') + ({spread})"
    heat = base.transform_calculate(effect_shown=shown).mark_rect().encode(
        **grid.encoding(),
        color=fill,
        opacity=alt.condition(clear, alt.value(1), alt.value(_FADED)),
        tooltip=[
            alt.Tooltip("token:N", title="token"),
            alt.Tooltip("block:Q", title="restored after block"),
            alt.Tooltip(f"{chosen.restored}:Q", title=f"{what} restored", format=".4~g"),
            alt.Tooltip("effect_shown:N", title="indirect effect ± stderr"),
        ],
    )  # fmt: skip
    underline = grid.places(subject.tolist()).mark_rect(style="accent").encode(**grid.under_tokens())
    return grid.picture(
        heat,
        underline,
        title=f"Causal trace: {_TITLES.get(kind, kind)}",
        subtitle="bar and bold: corrupted subject; faded: interval includes zero",
    )


def figures(dataset: xr.Dataset, *, blocks: Sequence[int] | None = None) -> list[Figure]:
    """Give the trace as a figure of a report, one variant for each kind."""
    cells = frame(dataset)
    kinds = [str(name) for name in dataset["kind"].values]
    answer, subject = (visible(str(dataset.attrs[name]), space=" ") for name in ("answer", "subject"))
    clean, corrupted = float(dataset["p_clean"]), float(dataset["p_corrupted"])
    shown = _METRICS[_metrics(dataset)[0]].effect
    return [
        Figure(
            name=_TABLE,
            title="Causal trace",
            caption=(
                f"Probability of the answer “{answer}” when the subject “{subject}” is corrupted and "
                f"one place is put back to its clean value. Clean run: {clean:.3g}; corrupted run: "
                f"{corrupted:.3g}, the low end of the colours (logarithms in nats). Corrupted tokens carry a "
                "bar; faded cells are those whose effect has an interval that includes zero."
            ),
            draw=lambda kind, **options: panel(dataset, cells, kind=kind, blocks=blocks, **options),
            frame=cells,
            choice="restored",
            variants={
                _label(name, metric): {"kind": name, "metric": metric}
                for metric in _metrics(dataset)
                for name in kinds
            },
            linked=True,
            readout=Readout(
                bars=[Bar("kind", shown, f"{shown}_low", f"{shown}_high")],
                unit=f"gives back [95% interval] {_METRICS[_metrics(dataset)[0]].unit}",
            ),
        )
    ]


def frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the trace out as one row for each kind, layer and position, token text made visible."""
    shape = dataset["p_restored"].transpose("kind", "layer", "position").shape
    kind, block, position = (index.ravel() for index in np.indices(shape))
    token = [visible(str(text)) for text in dataset["token"].values]
    columns = {
        "kind": dataset["kind"].values[kind].astype(str),
        "block": dataset["layer"].values[block],
        "position": dataset["position"].values[position],
        "token": [token[index] for index in position],
        "is_subject": dataset["is_subject"].values[position],
        "p_restored": _flat(dataset, "p_restored"),
        "p_restored_stderr": _flat(dataset, "p_restored_stderr"),
        "effect": _flat(dataset, "indirect_effect"),
        **{f"effect_{part}": _flat(dataset, f"indirect_effect_{part}") for part in ("stderr", "low", "high")},
    }
    if "baseline_indirect_effect" in dataset:
        columns["untrained_effect"] = _flat(dataset, "baseline_indirect_effect")
    if "log_probability" in _metrics(dataset):
        columns |= _log_columns(dataset)
    return pd.DataFrame(columns)


def _metrics(dataset: xr.Dataset) -> list[str]:
    """Give the metrics that the dataset holds and that are drawn, the one to show first in front."""
    held = [name for name in _METRICS if name == "probability" or name in dataset.get("metric", [])]
    several = len(np.atleast_1d(dataset.attrs.get("answer_tokens", 0))) > 1
    return held[::-1] if several else held


def _label(kind: str, metric: str) -> str:
    return kind if metric == "probability" else f"{kind}, nats"


def _domain(dataset: xr.Dataset, cells: pd.DataFrame, metric: str) -> list[float]:
    """Give the ends of the colours: the corrupted run, and the best that any restoration reaches."""
    if metric == "probability":
        corrupted = float(dataset["p_corrupted"])
    else:
        corrupted = float(dataset["metric_corrupted"].sel(metric=metric))
    highest = float(np.nanmax(cells[_METRICS[metric].restored].to_numpy()))
    return [corrupted, highest if highest > corrupted else corrupted + 1e-9]


def _log_columns(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """Give levels and effects in nats, with 95% intervals from the noise samples (Student's t)."""
    logs = dataset.sel(metric="log_probability")
    effect, stderr = _flat(logs, "metric_effect"), _flat(logs, "metric_effect_stderr")
    reach = stderr * scipy.stats.t.ppf(0.975, max(dataset.sizes["sample"] - 1, 1))
    return {
        "log_p_restored": _flat(logs, "metric_restored"),
        "log_effect": effect,
        "log_effect_stderr": stderr,
        "log_effect_low": effect - reach,
        "log_effect_high": effect + reach,
    }


def _flat(dataset: xr.Dataset, name: str) -> np.ndarray:
    return dataset[name].transpose("kind", "layer", "position").values.ravel()


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say how much each run of corrupted subject tokens carries, against the other tokens of the passage."""
    cells, metric = frame(dataset), _metrics(dataset)[0]
    column, shape = _METRICS[metric].effect, (dataset.sizes["layer"], dataset.sizes["position"])
    kind = "state" if "state" in dataset["kind"].values else str(dataset["kind"].values[0])
    state = cells[cells["kind"] == kind]
    effect, stderr = (np.asarray(state[name]).reshape(shape) for name in (column, f"{column}_stderr"))
    is_subject = dataset["is_subject"].values.astype(bool)
    last = len(is_subject) - 1
    others = [place for place in range(int(np.argmax(is_subject)), last) if not is_subject[place]]
    texts = [str(text) for text in dataset["token"].values]
    answer, unit = visible(str(dataset.attrs["answer"]), space=" "), _METRICS[metric].unit
    found: list[Finding] = []
    for first, final in _runs(is_subject):
        within = effect[:, first : final + 1]
        block, offset = (int(index) for index in np.unravel_index(np.argmax(within), within.shape))
        place = first + offset
        spread = f" ± {stderr[block, place]:.2g}" if np.isfinite(stderr[block, place]) else ""
        name = visible("".join(texts[first : final + 1]).strip(), space=" ")
        text = (
            f"To predict “{answer}” after “{visible(texts[last])}” (token {last}), the earlier “{name}” "
            f"(tokens {first} to {final}) gives back up to {effect[block, place]:+.3g}{spread} {unit} when "
            f"restored (at “{visible(texts[place])}”, after block {block})"
        )
        if others:
            elsewhere = np.median(effect[:, others].max(axis=0))
            text += f"; the median other token since then, at most {elsewhere:+.2g}"
        found.append(Finding(f"{text}.", position=place, block=block))
    return found


def _runs(marked: np.ndarray) -> list[tuple[int, int]]:
    """Give the first and last index of each unbroken run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked.astype(int), [0]])))
    return [(int(start), int(stop) - 1) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
