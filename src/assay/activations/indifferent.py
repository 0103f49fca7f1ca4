r"""The null of patching between two prompts: a prompt beside a copy that differs from it in tokens that do not matter.

Patching asks what carries the difference of two prompts in a metric. So there is nothing to find between two prompts
that differ, and not in the metric: whatever effect a method gives there comes with any difference. Of each of some
tokens that both prompts of a pair share, one other token is drawn; those with which the base run's metric :math:`M`
changes the least are replaced, as many as the pair differs in, or as there are (``baseline_replaced``). How far the
copy is from indifferent is reported: :math:`M_\mathrm{copy} - M_\mathrm{base}`, ``baseline_total_effect``.

A prompt of random tokens is no such null. It takes away whatever a place held, and where the metric is a difference of
two answers, to take one away is half the way to the other: on SmolLM2 it scores 35% to 170% of the largest effect.
"""

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.estimates.checks import Check, graded
from assay.models.model import Model
from assay.models.slopes import last_logits

DRAWN = 8
"""Tokens of which another one is tried, or twice as many as the pair differs in where these are more."""
MOST = 64
"""No more are tried: each is a row of a forward pass."""
TOKENS_AT_ONCE = 4096
"""Tokens of one pass in which they are tried."""
LARGEST = 0.25
"""Share of the largest effect that the null may reach."""


def indifferent_copy(
    model: Model, base: Tensor, source: Tensor, metrics: Callable[[Tensor], Tensor], seed: int
) -> Tensor:
    """Copy a prompt, with other tokens where they matter the least.

    Args:
        model: a decoder.
        base: token ids of the run that is patched, (1, pos).
        source: token ids of the other prompt of the pair, (1, pos).
        metrics: from logits at the last position, (row, vocabulary), to what is measured, (row, metric).
        seed: of the tokens.

    Returns:
        Token ids, (1, pos); at most as many other ones as the pair differs in, and no more than were tried.
    """
    generator = torch.Generator().manual_seed(seed)
    differs = (base != source)[0].cpu()
    free = (~differs).nonzero()[:, 0] if not bool(differs.all()) else torch.arange(len(differs))
    wanted = max(1, int(differs.sum()))
    drawn = min(max(DRAWN, 2 * wanted), MOST)
    places = free[torch.randperm(len(free), generator=generator)[:drawn]]
    other = torch.randint(model.parts.vocabulary - 1, (len(places),), generator=generator)
    own = base[0].cpu()[places]
    tokens = (other + (other >= own)).to(base)  # any but the one that stands there
    tried = base.repeat(len(places), 1)
    rows = torch.arange(len(places))
    tried[rows, places] = tokens
    passes = torch.cat([base, source.to(base), tried]).split(max(1, TOKENS_AT_ONCE // base.shape[1]))
    measured = torch.cat([metrics(last_logits(model, some, [])[0]).double().cpu() for some in passes])
    whole = (measured[1] - measured[0]).abs()
    moved = (measured[2:] - measured[0]).abs() / torch.where(whole > 0, whole, 1.0)
    least = moved.amax(-1).argsort(stable=True)[:wanted]
    copied = base.clone()
    copied[0, places[least]] = tokens[least]
    return copied


def null_check(code: str, dataset: xr.Dataset, pairs: dict[str, str]) -> Check:
    """Whether little is found where there is nothing to find.

    Args:
        code: the check's.
        dataset: holds effects, those of the null, both total effects, and how many tokens were replaced.
        pairs: name of each variable of effects -> that of its null; those of one dataset are read together.

    Returns:
        The verdict on the largest of the null's effects, as a share of the largest effect; the worst of all metrics.
    """

    def largest(names: list[str]) -> np.ndarray:
        values = [np.abs(_by_metric(dataset[name])) for name in names]
        return np.nanmax(np.concatenate(values, 1), axis=1, initial=0.0)

    effect, null = largest(list(pairs)), largest(list(pairs.values()))
    share = _worst(null, effect)
    apart = _worst(*(np.abs(_by_metric(dataset[f"{name}total_effect"]))[:, 0] for name in ("baseline_", "")))
    message = (
        f"Between a prompt and a copy with {float(dataset['baseline_replaced']):g} other tokens, which move the metric "
        f"by {apart:.1%} of the total effect, the largest effect is {share:.1%} of the largest here."
    )
    remedy = (
        "Read no effect that its baseline reaches."
        if share > LARGEST
        else "No tokens were found that do not matter: take another seed, or longer prompts."
    )
    return graded(
        code, "much is found where there is nothing", max(share, apart), (LARGEST, np.inf), message, remedy
    )


def _by_metric(values: xr.DataArray) -> np.ndarray:
    """One row a metric; one row where there is only one metric."""
    count = values.sizes.get("metric", 1)
    return (values.transpose("metric", ...) if "metric" in values.dims else values).values.reshape(count, -1)


def _worst(part: np.ndarray, whole: np.ndarray) -> float:
    """The largest share; infinite where there is a part of nothing, 0 where there is neither."""
    share = np.divide(part, whole, out=np.where(part > 0, np.inf, 0.0), where=whole > 0)
    return float(share.max())
