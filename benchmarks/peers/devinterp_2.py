r"""devinterp 2.0.1: language models as its users call it; others through its loss function, rows being numbers.

Its estimate is the mean over all steps, the first one at the anchor included, less the mean initial loss. By default
all chains see the same batches, and the initial loss is that of the first 32 of them: with more steps than that, an
estimate holds n beta times the chance by which later batches are harder, which is the same in all chains and so in no
standard error of theirs. Where estimates are compared, every chain has batches of its own, and as many initial batches
as steps, which are then the same ones: options of its own, and the estimate is still its own.
"""

from collections.abc import Sequence

import torch
from datasets import Dataset
from devinterp.slt.llc import compute_llc
from devinterp.slt.sampling import sample as draw
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.peers.llc_worker import Length, Sample, Work, serve


def prepare(work: Work) -> Sample:
    """Build the stack with rows that are the numbers of the examples, or load the model."""
    if work.model:
        module: nn.Module = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
        rows, loss = work.data[0], None
    else:
        module = work.stack()
        rows = torch.stack(
            [torch.arange(len(work.data[0])), torch.zeros(len(work.data[0]), dtype=torch.int64)], 1
        )
        loss = _loss_of(work)
    dataset = Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")

    def sample(length: Length) -> Sequence[float]:
        found = draw(
            module,
            dataset.select(range(length.rows)) if length.rows else dataset,
            {},
            lr=work.step_size,
            n_beta=work.n_beta,
            localization=work.localization,
            param_masks={name: mask for name, mask in work.masks.items()} or None,
            num_chains=length.chains,
            num_draws=length.steps,
            batch_size=work.batch_size,
            # its own 32 for each chain would take longer than the sampling that is timed
            num_init_loss_batches=length.steps if length.agreeing else 8,
            match_sampling_input_ids_across_chains=not length.agreeing,
            loss_fn=loss,
            device="cpu",
        )
        own = found.dataset.sampling_loss_micro.mean(["step", "batch_sampling", "token_pos"])
        before = found.dataset.init_loss.mean("token_pos")
        if not length.agreeing:
            return compute_llc(found)["llc_per_chain"].to_numpy().tolist()
        # of the same mean as `compute_llc`, but each chain is held against its own batches
        return (work.n_beta * (own - before)).to_numpy().tolist()

    return sample


def _loss_of(work: Work):  # noqa: ANN202 (a function of module and rows)
    inputs, targets = work.data

    def each(module: nn.Module, rows: Tensor) -> Tensor:
        numbers = rows[:, 0]
        outputs = module(inputs[numbers])
        if work.biased:
            return nn.functional.cross_entropy(outputs, targets[numbers], reduction="none")[:, None]
        return (outputs - targets[numbers]).square().sum(1, keepdim=True)

    return each


if __name__ == "__main__":
    serve(prepare, ["devinterp", "transformers", "torch"])
