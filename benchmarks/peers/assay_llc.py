"""Assay: the public verb, all chains together; a language model's one after the other."""

from collections.abc import Sequence

import assay
from benchmarks.peers.llc_worker import Length, Sample, Work, serve


def prepare(work: Work) -> Sample:
    """Build the stack, or load the model."""
    module = assay.load(work.model) if work.model else work.stack()
    loss = None if work.model else "cross_entropy" if work.biased else "squared_error"

    def sample(length: Length) -> Sequence[float]:
        found = assay.learning_coefficient(
            module,
            loss,
            tuple(part[: length.rows] for part in work.data),
            mask=work.masks or None,
            step_size=work.step_size,
            n_beta=work.n_beta,
            localization=work.localization,
            batch_size=work.batch_size,
            chains=length.chains,
            draws=length.steps,
            burn_in=0,
            chains_at_once=1 if work.model else None,
        )
        # the plain estimate, as peers have it: the bias of the step size is not taken off
        excess = found.dataset["loss"].mean("draw") - found.dataset["anchor_loss"]
        return (work.n_beta * excess).to_numpy().tolist()

    return sample


if __name__ == "__main__":
    serve(prepare, ["assay", "torch"])
