"""What no sampler of a stack can do without: its matrix products, one pass of noise and one over the parameters.

The products are those of the order that takes the fewest multiplications (`assay.landscape.stack.runs`), on memory that
is hot; batches, losses, activations and the anchor cost nothing here. There is no estimate.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import nn

from assay.landscape.stack import runs
from benchmarks.peers.llc_worker import Length, Sample, Work, serve


def prepare(work: Work) -> Sample:
    """Lay out factors and results of every product."""
    layers = [layer for layer in work.stack() if isinstance(layer, nn.Linear)]
    factors = [
        (torch.rand(rows, inner), torch.rand(inner, columns), torch.empty(rows, columns))
        for rows, inner, columns in products(layers, work.batch_size, apart=work.biased)
    ]
    position = torch.zeros(sum(weight.numel() for weight in work.weights))
    noise = torch.empty_like(position)
    generator = torch.Generator().manual_seed(0)

    def sample(length: Length) -> Sequence[float]:
        for _ in range(length.steps * length.chains):
            for left, right, room in factors:
                torch.mm(left, right, out=room)
            position.add_(noise.normal_(generator=generator), alpha=1e-3)
        return []

    return sample


def products(layers: Sequence[nn.Linear], examples: int, *, apart: bool) -> Iterator[tuple[int, int, int]]:
    """Give rows, inner size and columns of the products of a step of one chain.

    Args:
        layers: of the stack.
        examples: in a batch.
        apart: whether there are biases or activations between layers.

    Yields:
        Of a product at a time.
    """
    together = (
        [range(number, number + 1) for number in range(len(layers))]
        if apart
        else runs(layers, examples, first=True)
    )
    for run in together:
        widths = [layers[run.start].in_features, *(layers[number].out_features for number in run)]
        entering, leaving = widths[0], widths[-1]
        yield examples, entering, leaving
        yield leaving, examples, entering
        if run.start:
            yield examples, leaving, entering
        for before, after in pairwise(widths[1:]):
            yield after, before, entering  # of the layers up to here
            yield before, after, entering  # of the slope, back to here
            yield after, entering, before  # the gradient


if __name__ == "__main__":
    serve(prepare, ["torch"])
