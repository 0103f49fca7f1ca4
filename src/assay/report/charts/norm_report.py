"""Norm report: how far each way of changing the norms takes a model from itself, and what the norms divide by."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from assay.report.figure import Figure, Finding
from assay.report.theme import finished

_WAYS, _SCALES, _LOSSES = "norm_ways", "norm_scales", "norm_losses"
_ROW = 22
_LINE = "#4c78a8"  # seen on light and on dark pages
_LOG = alt.Scale(type="log")
_LEAST = 1e-18
"""Zero on a logarithmic axis."""


def chart(dataset: xr.Dataset) -> alt.VConcatChart:
    """Draw a norm report, ready to show or save.

    Args:
        dataset: result of `assay.norms.report`.

    Returns:
        An Altair chart in the light theme: what each way changes in logits, KL and loss, above the norms' scales.
    """
    ways, scales, losses = way_frame(dataset), scale_frame(dataset), loss_frame(dataset)
    upper = alt.hconcat(_differences(ways), _kl(ways), _losses(dataset)).resolve_scale(
        color="independent", shape="independent"
    )
    picture = alt.vconcat(upper, _heatmap(dataset)).resolve_scale(color="independent", shape="independent")
    return finished(picture, {_WAYS: ways, _SCALES: scales, _LOSSES: losses})


def _differences(ways: pd.DataFrame, width: int = 230) -> Any:
    """Largest difference of a logit in both precisions: what is exact falls with the precision."""
    base = alt.Chart(alt.NamedData(name=_WAYS), width=width, height=alt.Step(_ROW))
    points = (
        base.transform_filter("isValid(datum.difference)")
        .mark_point(filled=True, size=50)
        .encode(
            y=_rows(ways),
            x=alt.X("difference:Q", title="largest logit difference", scale=_LOG, axis=_log_axis()),
            shape=alt.Shape("precision:N", title="computed in", sort=["own", "float64"]),
            color=alt.condition("datum.exact", alt.value(_LINE), alt.value("#b84a00")),
            tooltip=["way:N", "precision:N", alt.Tooltip("difference:Q", format=".2e"), "exact:N"],
        )
    )
    broken = (
        base.transform_filter("!isValid(datum.difference) && datum.precision === 'own'")
        .mark_text(align="left", text="no finite logits", fontSize=9, color="#808080")
        .encode(y=_rows(ways), x=alt.value(6))
    )
    return alt.layer(points, broken).properties(
        title=alt.TitleParams("Exact or not", subtitle=["blue: exact", "orange: another model"])
    )


def _rows(ways: pd.DataFrame, *, labels: bool = True) -> alt.Y:
    names = list(dict.fromkeys(ways["way"]))
    return alt.Y("way:N", sort=names, scale=alt.Scale(domain=names), title=None, axis=alt.Axis(labels=labels))


def _kl(ways: pd.DataFrame, width: int = 190) -> Any:
    base = alt.Chart(alt.NamedData(name=_WAYS), width=width, height=alt.Step(_ROW)).transform_filter(
        "datum.precision === 'own' && isValid(datum.kl)"
    )
    rows = _rows(ways, labels=False)
    axis = alt.X("kl:Q", title="KL from the original (nats a token)", scale=_LOG, axis=_log_axis())
    tooltip = [
        "way:N",
        *(alt.Tooltip(f"{name}:Q", format=".3g") for name in ("kl", "kl_low", "kl_high", "baseline")),
    ]
    points = base.mark_point(filled=True, size=50, color=_LINE).encode(y=rows, x=axis, tooltip=tooltip)
    layers = [points]
    if np.isfinite(ways["kl_low"].to_numpy(dtype=float)).any():
        spread = base.transform_filter("isValid(datum.kl_low)")
        layers.insert(0, spread.mark_rule(color=_LINE).encode(y=rows, x=alt.X("kl_low:Q"), x2="kl_high:Q"))
    if np.isfinite(ways["baseline"].to_numpy(dtype=float)).any():
        compared = base.transform_filter("isValid(datum.baseline)")
        layers.append(
            compared.mark_tick(style="accent", thickness=2, size=12).encode(y=rows, x=alt.X("baseline:Q"))
        )
    subtitle = ["line: 95% interval", "tick: scales of other norms"]
    return alt.layer(*layers).properties(title=alt.TitleParams("How far", subtitle=subtitle))


def _losses(dataset: xr.Dataset) -> alt.Chart:
    models = [str(model).replace("_", " ") for model in dataset["model"].values]
    return (
        alt.Chart(alt.NamedData(name=_LOSSES), width=170, height=alt.Step(_ROW))
        .transform_filter("isValid(datum.loss)")
        .mark_tick(thickness=2, size=14)
        .encode(
            y=alt.Y("model:N", sort=models, title=None),
            x=alt.X("loss:Q", title="loss (nats)", scale=alt.Scale(type="symlog", zero=True)),
            color=alt.Color(
                "quantile:N", sort=None, title="quantile over tokens", legend=alt.Legend(columns=3)
            ),
            tooltip=[
                "model:N",
                "quantile:N",
                *(alt.Tooltip(f"{n}:Q", format=".3g") for n in ("loss", "low", "high")),
            ],
        )
        .properties(title=alt.TitleParams("Loss and its outliers", subtitle="mean and quantiles over tokens"))
    )


def _heatmap(dataset: xr.Dataset, widest: int = 640) -> alt.Chart:
    norms = [str(norm) for norm in dataset["norm"].values]
    height = max(4, min(14, 420 // len(norms)))
    width = max(4, min(22, widest // dataset.sizes["position"]))
    axis = alt.Axis(orient="top", labelAngle=0, labelOverlap=True, labelSeparation=6)
    return (
        alt.Chart(alt.NamedData(name=_SCALES), width=alt.Step(width), height=alt.Step(height))
        .mark_rect()
        .encode(
            x=alt.X("position:O", title="position", axis=axis),
            y=alt.Y("norm:N", sort=norms, title=None, axis=alt.Axis(labelOverlap=True)),
            color=alt.Color(
                "scale:Q", title="what the norm divides by", scale=alt.Scale(type="log", range="ramp"),
                legend=alt.Legend(format=".2~g"),
            ),
            tooltip=["norm:N", "position:O", *(alt.Tooltip(f"{n}:Q", format=".4g") for n in ("scale", "low", "high"))],
        )
        .properties(title=alt.TitleParams("What the norms divide by", subtitle="mean over inputs"))
    )  # fmt: skip


def _log_axis() -> alt.Axis:
    return alt.Axis(format=".0e", tickCount=3, labelOverlap=True, labelSeparation=6)


def figures(dataset: xr.Dataset) -> list[Figure]:
    """Give the report as three figures: the ways, their losses, and the scales."""
    ways, scales, losses = way_frame(dataset), scale_frame(dataset), loss_frame(dataset)
    told = dataset.attrs
    where = f"{told['inputs']} inputs of {told['tokens']} tokens"
    apart = ", ".join(map(str, told["special"])) or "none"
    return [
        Figure(
            name=_WAYS,
            title="What changing the norms does",
            caption=f"{where}; positions with a scale of their own: {apart}. The largest difference of a logit, "
            "computed in the model's own dtype and in float64, and the KL divergence from the original with its "
            "interval over inputs. A way without a point gives no finite logits.",
            draw=lambda: alt.hconcat(_differences(ways, 170), _kl(ways, 150)),
            frame=ways,
        ),
        Figure(
            name=_LOSSES,
            title="Loss and its outliers",
            caption=f"{where}: mean and quantiles of the loss over tokens, in nats.",
            draw=lambda: _losses(dataset),
            frame=losses,
        ),
        Figure(
            name=_SCALES,
            title="What the norms divide by",
            caption=f"{where}: the scale of every {told['kind']} at each position, mean over inputs.",
            draw=lambda: _heatmap(dataset, 220),
            frame=scales,
        ),
    ]  # fmt: skip


def way_frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the ways out as one row for each way and precision."""
    baseline = dataset.get("baseline_kl_from_original", np.nan)
    rows = []
    for way in map(str, dataset["way"].values):
        one = dataset.sel(way=way)
        kl = {f"kl{part}": float(one[f"kl_from_original{part}"]) for part in ("", "_low", "_high")}
        for precision in map(str, dataset["precision"].values):
            rows.append(
                {
                    "way": way.replace("_", " "),
                    "precision": precision,
                    "difference": max(float(one["logit_difference"].sel(precision=precision)), _LEAST),
                    "exact": bool(one["exact"]),
                    **{
                        name: max(value, _LEAST) if np.isfinite(value) else value
                        for name, value in kl.items()
                    },
                    "loss_difference": float(one["loss_difference"]),
                    "top1_agreement": float(one["top1_agreement"]),
                    "baseline": float(baseline) if way == "scale" else np.nan,
                }
            )
    return pd.DataFrame(rows)


def loss_frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the losses out as one row for each model and quantile, and one for its mean."""
    rows = []
    for model in map(str, dataset["model"].values):
        one = dataset.sel(model=model)
        ends = {name: float(one[f"loss_{name}"]) for name in ("low", "high")}
        rows.append(
            {"model": model.replace("_", " "), "quantile": "mean", "loss": float(one["loss"]), **ends}
        )
        for quantile in dataset["quantile"].values:
            ends = {
                name: float(one[f"loss_quantile_{name}"].sel(quantile=quantile)) for name in ("low", "high")
            }
            label = "largest" if quantile == 1 else f"{quantile:.0%}"
            value = float(one["loss_quantile"].sel(quantile=quantile))
            rows.append({"model": model.replace("_", " "), "quantile": label, "loss": value, **ends})
    return pd.DataFrame(rows)


def scale_frame(dataset: xr.Dataset) -> pd.DataFrame:
    """Lay the scales out as one row for each norm and position."""
    norms, positions = dataset.sizes["norm"], dataset.sizes["position"]
    table: dict[str, Any] = {
        "norm": np.repeat(dataset["norm"].values.astype(str), positions),
        "layer": np.repeat(dataset["layer"].values, positions),
        "position": np.tile(dataset["position"].values, norms),
    }
    for column, name in {"scale": "", "stderr": "_stderr", "low": "_low", "high": "_high"}.items():
        table[column] = dataset[f"norm_scale{name}"].transpose("norm", "position").values.ravel()
    return pd.DataFrame(table)


def findings(dataset: xr.Dataset) -> list[Finding]:
    """Say which ways are exact, what one constant a norm costs, and where scales are largest."""
    exact = [
        str(way).replace("_", " ") for way in dataset["way"].values if bool(dataset["exact"].sel(way=way))
    ]
    none = (
        "Nothing that was tried"
        if not exact
        else " and ".join(filter(None, [", ".join(exact[:-1]), exact[-1]]))
    )
    found = [
        Finding(f"Exact for this model, up to rounding: {none}." if exact else f"{none} is exact here.", 0)
    ]
    if apart := dataset.attrs.get("without_positions"):
        text = f"No position can be held apart, and none frozen: {apart[0]} is given rows and positions as one axis."
        found.append(Finding(text))
    if "scale" in dataset["way"].values:
        one = dataset.sel(way="scale")
        kl, loss = float(one["kl_from_original"]), float(one["loss_difference"])
        text = f"With one constant a norm the model is {kl:.3g} nats a token from itself"
        if np.isfinite(float(one["kl_from_original_low"])):
            text += f" [{float(one['kl_from_original_low']):.3g}, {float(one['kl_from_original_high']):.3g}]"
        text = (
            f"{text}, its loss {loss:+.3g} nats."
            if np.isfinite(kl)
            else "With one constant a norm the model breaks."
        )
        found.append(Finding(text))
    scales = dataset["norm_scale"]
    ratio = scales / scales.median("position")
    norm, position = np.unravel_index(int(ratio.values.argmax()), ratio.shape)
    found.append(
        Finding(
            f"{dataset['norm'].values[norm]} divides by {float(scales[norm, position]):.4g} at position {position}, "
            f"{float(ratio[norm, position]):.3g} times its median over positions.",
            int(position),
        )
    )
    return found
