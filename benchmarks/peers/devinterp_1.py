"""devinterp 1.3.2 as its users call it: a DataLoader over a TensorDataset, the summary of the default sampler."""

import warnings
from collections.abc import Sequence

from devinterp.optim.sgld import SGLD
from devinterp.slt.sampler import estimate_learning_coeff_with_summary
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.llc_worker import Length, Sample, Work, serve


def prepare(work: Work) -> Sample:
    """Build the stack and the loader."""
    module = work.stack()
    loader = DataLoader(TensorDataset(*work.data), batch_size=work.batch_size, shuffle=True)

    def evaluate(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = model(batch[0])
        return work.mean_loss(outputs, batch[1]), {"output": outputs}

    def sample(length: Length) -> Sequence[float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = estimate_learning_coeff_with_summary(
                module,
                loader,
                evaluate=evaluate,
                sampling_method=SGLD,
                optimizer_kwargs={
                    "lr": work.step_size,
                    "nbeta": work.n_beta,
                    "localization": work.localization,
                },
                num_chains=length.chains,
                num_draws=length.steps,
                num_burnin_steps=0,
                seed=0,
                verbose=False,
            )
        return [float(found[f"llc-chain/{chain}"]) for chain in range(length.chains)]

    return sample


if __name__ == "__main__":
    serve(prepare, ["devinterp", "torch"])
