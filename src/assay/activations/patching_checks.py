"""What patching is judged by."""

import numpy as np
import xarray as xr

from assay.estimates.checks import Check

INVARIANT = 1e-3
BASELINE = 0.5


def patching_checks(dataset: xr.Dataset) -> list[Check]:
    """The verdicts P101 to P104 on a patching result.

    Args:
        dataset: the result.

    Returns:
        One check each, as far as the dataset has what it needs.
    """
    checks = [_differ(dataset)]
    if "baseline_effect" in dataset:
        checks.append(_baseline(dataset))
    last_layer, last = dataset.attrs["n_layers"] - 1, dataset.attrs["last_position"]
    if (
        dataset.attrs["site"] == "resid_post"
        and last in dataset["position"]
        and last_layer in dataset["layer"]
    ):
        checks.append(_last(dataset))
    return [*checks, _engine(dataset)]


def _differ(dataset: xr.Dataset) -> Check:
    total, low, high = (dataset[f"total_effect{part}"].values for part in ("", "_low", "_high"))
    # with one pair the bounds are NaN, and the estimate alone decides
    clear = (total != 0) & ~((low <= 0) & (high >= 0))
    unclear = [str(name) for name in dataset["metric"].values[~clear]]
    figure = float(len(unclear))
    if not unclear:
        message = "The two runs differ in every metric: the interval of each total effect excludes zero."
        return Check("P101", "the prompts do not differ", "pass", figure, message)
    message = f"The interval of the total effect includes zero for {', '.join(unclear)}."
    remedy = "Normalised effects of these metrics are not to be read: choose prompts that differ, or take more pairs."
    verdict = "fail" if len(unclear) == len(clear) else "warn"
    return Check("P101", "the prompts do not differ", verdict, figure, message, remedy)


def _baseline(dataset: xr.Dataset) -> Check:
    towards = np.sign(dataset["total_effect"].values)[:, None]
    flat = (dataset[name].values.reshape(len(towards), -1) for name in ("effect", "baseline_effect"))
    largest, baseline = ((towards * cells).max(axis=1, initial=0.0) for cells in flat)
    share = float(np.max(np.divide(baseline, largest, out=np.full_like(baseline, np.inf), where=largest > 0)))
    message = (
        f"Patching from random tokens moves a metric towards the other run by up to {share:.1%} of the largest "
        "effect here."
    )
    if share <= BASELINE:
        return Check("P102", "an unrelated prompt does the same", "pass", share, message)
    remedy = "Compare each cell with `baseline_effect`: a place may matter whatever is put there."
    return Check("P102", "an unrelated prompt does the same", "warn", share, message, remedy)


def _last(dataset: xr.Dataset) -> Check:
    cell = dataset.sel(layer=dataset.attrs["n_layers"] - 1, position=dataset.attrs["last_position"])
    error = float(np.abs(cell["metric_patched"] - cell["metric_source"]).max())
    message = f"Patching the last state differs from the source run by {error:.1e}; it should equal it."
    if error <= INVARIANT:
        return Check("P103", "the last state is not the other run", "pass", error, message)
    remedy = "Run `assay doctor` on this model."
    return Check("P103", "the last state is not the other run", "fail", error, message, remedy)


def _engine(dataset: xr.Dataset) -> Check:
    engine = dataset.attrs["engine"]
    message = f"Cells were computed by {engine}."
    if engine == "partial forwards":
        return Check("P104", "no partial forwards", "pass", None, message)
    remedy = (
        "The numbers are right, only slower; `assay doctor` says why blocks cannot continue a prefix here."
    )
    return Check("P104", "no partial forwards", "warn", None, message, remedy)
