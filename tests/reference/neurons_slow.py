"""Slow but obvious twins of neuron importance: hooks on paths written by hand, one full forward per ablation."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Literal

import torch
from torch import Tensor, nn

from reference.naive import PORTS, only_tensor, patched

Kind = Literal["llama", "gpt2"]
Ablation = Literal["zero", "mean"]


def answer_log_probability(logits: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Log-probability of an answer, token by token, from logits (pos, vocabulary) of prompt and answer."""
    total = logits.new_zeros(())
    for offset, token in enumerate(answer):
        row = logits[len(prompt) - 1 + offset]
        total = total + row[token] - torch.logsumexp(row, 0)
    return total


def slopes(
    kind: Kind, module: nn.Module, layers: int, prompt: Sequence[int], answer: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Activations of every layer's neurons at the prompt, and the gradient of the answer's log-probability there.

    Args:
        kind: which table of paths.
        module: a model of that kind.
        layers: number of its blocks.
        prompt: token ids.
        answer: token ids.

    Returns:
        Activations and gradients, a tensor (position, neuron) a layer each.
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(only_tensor(args))

    path, _ = PORTS[kind]["mlp_act"]
    with ExitStack() as stack:
        for layer in range(layers):
            stack.callback(module.get_submodule(path.format(layer)).register_forward_pre_hook(keep).remove)
        logits = module(torch.tensor([[*prompt, *answer[:-1]]])).logits[0]
    gradients = torch.autograd.grad(answer_log_probability(logits, prompt, answer), seen)
    here = slice(0, len(prompt))
    return [a.detach()[0, here] for a in seen], [gradient[0, here] for gradient in gradients]


def filled(activations: Tensor, ablation: Ablation) -> Callable[[int], float]:
    """What each neuron's activation becomes, from a layer's activations (position, neuron)."""
    means = [sum(column) / len(column) for column in activations.T.tolist()]
    return lambda neuron: means[neuron] if ablation == "mean" else 0.0


def naive_attribution(
    kind: Kind,
    module: nn.Module,
    layers: int,
    prompt: Sequence[int],
    answer: Sequence[int],
    ablation: Ablation,
) -> Tensor:
    """First-order effect of ablating each neuron, one number after the other.

    Args:
        kind: which table of paths.
        module: a model of that kind.
        layers: number of its blocks.
        prompt: token ids.
        answer: token ids.
        ablation: what an ablated activation becomes.

    Returns:
        Nats, (layer, position, neuron).
    """
    activations, gradients = slopes(kind, module, layers, prompt, answer)
    result = torch.zeros(layers, *activations[0].shape)
    for layer in range(layers):
        value = filled(activations[layer], ablation)
        for position in range(len(prompt)):
            for neuron in range(result.shape[-1]):
                step = value(neuron) - float(activations[layer][position, neuron])
                result[layer, position, neuron] = step * float(gradients[layer][position, neuron])
    return result


def naive_effect(
    kind: Kind,
    module: nn.Module,
    prompt: Sequence[int],
    answer: Sequence[int],
    cell: tuple[int, int, int],
    value: float,
) -> float:
    """What one neuron's activation set to a value does to the answer's log-probability, by two full forwards.

    Args:
        kind: which table of paths.
        module: a model of that kind.
        prompt: token ids.
        answer: token ids.
        cell: layer, position and neuron.
        value: the activation it gets.

    Returns:
        Nats after minus nats before.
    """
    layer, position, neuron = cell
    path, side = PORTS[kind]["mlp_act"]
    ids = torch.tensor([[*prompt, *answer[:-1]]])
    with torch.no_grad():
        before = module(ids).logits[0].double()
    after = patched(module, ids, path.format(layer), side, (0, position, neuron), value)[0].double()
    return float(
        answer_log_probability(after, prompt, answer) - answer_log_probability(before, prompt, answer)
    )
