"""What a norm report is judged by."""

import numpy as np
import xarray as xr

from assay.estimates.checks import Check

MUST_BE_EXACT = ("fold", "freeze")
EPSILON_TOLERANCE = 1e-3
DISABLED = 1e6
APART = 5.0
CHANGED = 0.05
FLOAT16_MAX = 65504.0


def norm_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts M101 to M107 on a norm report.

    Args:
        dataset: the report.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    return [
        *_exact(dataset), *_epsilon(dataset), _first(dataset), *_fixed(dataset), *_outliers(dataset),
        *_baseline(dataset), _range(dataset),
    ]  # fmt: skip


def _exact(dataset: xr.Dataset) -> list[Check]:
    ways = [way for way in MUST_BE_EXACT if way in dataset["way"].values]
    largest, code, title = float(dataset["largest_logit"]), "M101", "an exact way is not exact"
    found = dataset["logit_difference"].sel(precision="float64").sel(way=ways).values
    if not ways or np.isnan(found).all():
        return []
    figure = float(np.nanmax(found)) / largest
    message = f"In float64, {' and '.join(ways)} change logits by {figure:.1e} of the largest."
    if bool(dataset["exact"].sel(way=ways).all()):
        return [Check(code, title, "pass", figure, message)]
    remedy = (
        "Something reads a norm in a way not seen here: use the model as it is, and report the architecture."
    )
    return [Check(code, title, "fail", figure, message, remedy)]


def _epsilon(dataset: xr.Dataset) -> list[Check]:
    """Norms that Assay fixed have an epsilon of 0, which no configuration has to name."""
    told = float(dataset["configured_epsilon"])
    main = [
        str(name) for name in dataset["norm"].values if str(name).startswith(("ln1", "ln2", "final_norm"))
    ]
    found = dataset["norm_epsilon"].sel(norm=main).values
    found = found[found > 0]
    if np.isnan(told) or not len(found):
        return []
    code, title = "M102", "epsilon is not the configured one"
    wrong = np.abs(found / told - 1) > EPSILON_TOLERANCE
    message = f"{len(found) - wrong.sum()} of {len(found)} norms have the configured epsilon of {told:.3g}"
    if not wrong.any():
        return [Check(code, title, "pass", 0.0, f"{message}.")]
    what = "switched on again" if told >= DISABLED else "changed"
    message += f"; the others up to {found[wrong].max():.3g}."
    remedy = (
        f"The loader ignored the configuration: norms are {what}, and this is another model. Use assay.load."
    )
    return [Check(code, title, "fail", float(wrong.sum()), message, remedy)]


def _first(dataset: xr.Dataset) -> Check:
    """Compare each position with the median of all, over the norms; those given a scale of their own are left out."""
    scales = dataset["norm_scale"]
    ratio = (scales / scales.median("position")).max("norm").values
    special = list(dataset.attrs["special"])
    ordinary = np.delete(ratio, special)
    position, figure = int(ratio.argmax()), float(ratio.max())
    code, title = "M103", "a position is unlike the others"
    message = f"At position {position} a norm's scale is up to {figure:.3g} times its median over positions."
    if ordinary.max(initial=0.0) <= APART:
        apart = " It has a scale of its own in `scale`." if figure > APART else ""
        return Check(code, title, "pass", figure, message + apart)
    wanted = [int(p) for p in np.flatnonzero(ratio > APART)][:8]
    remedy = f"One constant cannot stand for both: pass special={tuple(sorted({*special, *wanted}))}."
    return Check(code, title, "warn", figure, message, remedy)


def _fixed(dataset: xr.Dataset) -> list[Check]:
    if "scale" not in dataset["way"].values:
        return []
    code, title = "M104", "the model needs its norms"
    kl = float(dataset["kl_from_original"].sel(way="scale"))
    message = f"With one constant a norm, the model is {kl:.3g} nats a token from itself (KL)."
    if kl <= CHANGED:
        return [Check(code, title, "pass", kl, message)]
    if np.isnan(kl):
        message = "With one constant a norm, logits grow beyond what numbers hold."
    remedy = "Do not read the model with fixed scales as the model; remove its norms by fine-tuning, or freeze them."
    return [Check(code, title, "warn", None if np.isnan(kl) else kl, message, remedy)]


def _outliers(dataset: xr.Dataset) -> list[Check]:
    """Whether the mean loss of a way lies above what 99% of its tokens lose."""
    high = dataset["loss_quantile"].sel(quantile=0.99)
    made = [
        str(m)
        for m in dataset["model"].values
        if float(dataset["loss"].sel(model=m)) > float(high.sel(model=m))
    ]
    code, title = "M105", "a few tokens make the mean"
    if not made:
        return [Check(code, title, "pass", 0.0, "No mean loss lies above the loss of 99% of its tokens.")]
    message = f"The mean loss of {', '.join(made)} lies above the loss of 99% of its tokens."
    return [Check(code, title, "warn", float(len(made)), message, "Compare quantiles, not means.")]


def _baseline(dataset: xr.Dataset) -> list[Check]:
    if "baseline_kl_from_original" not in dataset or "scale" not in dataset["way"].values:
        return []
    kl = float(dataset["kl_from_original"].sel(way="scale"))
    if np.isnan(kl):
        return []  # M104 has said so
    other = float(dataset["baseline_kl_from_original"])
    code, title = "M106", "other norms' scales do as well"
    message = f"With the scales of other norms the KL is {other:.3g} nats a token, with their own {kl:.3g}."
    if np.isnan(other) or kl < other or dataset.attrs["fixed_norms"]:
        return [Check(code, title, "pass", other if np.isfinite(other) else None, message)]
    remedy = "Fixed scales keep nothing of this model: do not read anything into the one with fixed scales."
    return [Check(code, title, "warn", other, message, remedy)]


def _range(dataset: xr.Dataset) -> Check:
    """Whether weights were scaled up, and the epsilon that goes with them is there."""
    largest = float(dataset["largest_norm_weight"])
    code, title = "M107", "norm weights do not fit in float16"
    message = f"The largest weight of a norm is {largest:.3g}; float16 ends at {FLOAT16_MAX:.0f}."
    if largest <= FLOAT16_MAX:
        return Check(code, title, "pass", largest, message)
    if not dataset.attrs["fixed_norms"]:
        remedy = "Every norm is alive: the epsilon that goes with such weights was lost. Restore the configuration."
        return Check(code, title, "fail", largest, message, remedy)
    remedy = "Keep this model in float32 or bfloat16, or load it with norms='identity'."
    return Check(code, title, "warn", largest, message, remedy)
