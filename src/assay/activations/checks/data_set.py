"""What every measurement over a data set is judged by."""

import xarray as xr

from assay.estimates.checks import Check, graded

INVARIANT = 1e-3
"""Nats by which a model that is not edited may be from itself: rounding."""
EXACT = 1e-4
"""The same, where what is put together again is computed as it always is."""
ENOUGH = 20


def unchanged(code: str, title: str, error: float, message: str, *, within: float = INVARIANT) -> Check:
    """Whether the model, taken apart and put together again, is still the model.

    Args:
        code: of the check.
        title: what is wrong when it does not pass.
        error: how far it is from itself, nats.
        message: one sentence with the figure in it.
        within: nats that rounding accounts for.

    Returns:
        The verdict.
    """
    remedy = "Load the model in float32; if it is, run `assay doctor` on it."
    return graded(code, title, error, (within, within), message, remedy)


def where_tried(dataset: xr.Dataset, name: str = "effect_by_input") -> xr.DataArray:
    """The mean of what was measured, over the inputs on which the baseline was tried: like beside like.

    Args:
        dataset: with the attribute ``baseline_inputs``, and a variable over ``input``.
        name: of the variable.

    Returns:
        The variable without ``input``.
    """
    return dataset[name].isel(input=slice(dataset.attrs["baseline_inputs"])).mean("input")


def few_inputs(code: str, dataset: xr.Dataset) -> Check:
    """Whether there are inputs enough for a bootstrap over them.

    Args:
        code: of the check.
        dataset: with a dimension ``input``.

    Returns:
        The verdict.
    """
    count, title = dataset.sizes["input"], "few inputs"
    message = f"The intervals rest on {count} inputs."
    if count >= ENOUGH:
        return Check(code, title, "pass", float(count), message)
    remedy = f"A bootstrap over fewer than {ENOUGH} inputs gives intervals that are too narrow; pass more."
    return Check(code, title, "warn", float(count), message, remedy)
