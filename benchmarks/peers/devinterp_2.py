"""devinterp 2.0.1: language models as its users call it; others through its loss function, rows being numbers."""

from collections.abc import Sequence

import torch
from datasets import Dataset
from devinterp.slt.llc import llc
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
        found = llc(
            module,
            dataset,
            {},
            lr=work.step_size,
            n_beta=work.n_beta,
            localization=work.localization,
            param_masks={name: mask for name, mask in work.masks.items()} or None,
            num_chains=length.chains,
            num_draws=length.steps,
            batch_size=work.batch_size,
            # its own 32 for each chain would take longer than the sampling
            num_init_loss_batches=8,
            loss_fn=loss,
            device="cpu",
        )
        return found["llc_per_chain"].to_numpy().tolist()

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
