"""canonical-interp, without compilation of the module: on a CPU compiling takes longer than the sampling."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.llc_worker import Length, Sample, Work, serve


def batched(items: Iterable[Any], n: int) -> Iterator[tuple[Any, ...]]:
    """What Python has from 3.12 on, and the one thing it asks for Python 3.12 for."""
    remaining = iter(items)
    while batch := tuple(itertools.islice(remaining, n)):
        yield batch


if not hasattr(itertools, "batched"):
    itertools.batched = batched  # type: ignore[attr-defined]

from canonical_interp import LLCEstimator  # noqa: E402 (after the function it imports)


def prepare(work: Work) -> Sample:
    """Build the stack and the loader."""
    module = work.stack()
    loader = DataLoader(TensorDataset(*work.data), batch_size=work.batch_size, shuffle=True)

    def sample(length: Length) -> Sequence[float]:
        estimator = LLCEstimator(
            draws=length.steps,
            chains=length.chains,
            burnin_steps=0,
            learning_rate=work.step_size,
            localization=work.localization,
            nbeta=work.n_beta,
        )
        estimator.estimate_llc(module, loader, work.mean_loss, seed=0, compile=False, show_progress=False)
        metrics = estimator.get_metrics()
        assert metrics is not None
        return metrics["llcs"].tolist()

    return sample


if __name__ == "__main__":
    serve(prepare, ["canonical-interp", "torch"])
