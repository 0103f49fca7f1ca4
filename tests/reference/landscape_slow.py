"""SGLD the slow way: one chain at a time, on the module itself, by autograd."""

import copy

import numpy as np
import torch

from assay.landscape.chance import BLOCK


def slow_walk(module, loss, data, *, seed, step_size, n_beta, localization, batch_size, steps, mask=None):
    """The batch loss and the distance from the anchor before every step of one chain."""
    module = copy.deepcopy(module).eval()
    words = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    noise_stream, batch_stream = (torch.Generator().manual_seed(int(word) & (2**63 - 1)) for word in words)
    moving = {name: weight for name, weight in module.named_parameters() if mask is None or name in mask}
    weights = list(moving.values())
    anchors = [weight.detach().clone() for weight in weights]
    moves = [torch.ones_like(weight) if mask is None else mask[name] for name, weight in moving.items()]
    size = sum(weight.numel() for weight in weights)
    noise = torch.cat(
        [
            torch.randn(max(1, BLOCK // size), size, generator=noise_stream)
            for _ in range(0, steps, max(1, BLOCK // size))
        ]
    )
    losses: list[float] = []
    distances: list[float] = []
    for step in range(steps):
        batch = data
        if batch_size is not None:
            rows = torch.randint(len(data[0]), (batch_size,), generator=batch_stream)
            batch = tuple(part[rows] for part in data)
        value = loss(module, batch).mean()
        slopes = torch.autograd.grad(value, weights)
        losses.append(value.item())
        squared = sum(
            (weight - anchor).square().sum().item() for weight, anchor in zip(weights, anchors, strict=True)
        )
        distances.append(squared**0.5)
        pieces = noise[step].split([weight.numel() for weight in weights])
        for weight, anchor, slope, piece, move in zip(weights, anchors, slopes, pieces, moves, strict=True):
            drift = n_beta * slope + localization * (weight.data - anchor)
            weight.data += move * (-step_size / 2 * drift + step_size**0.5 * piece.view_as(weight))
    return torch.tensor(losses), torch.tensor(distances)
