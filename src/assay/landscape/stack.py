"""Plain stacks of layers, differentiated by hand for many chains at once.

A stack is a row of pieces: linear layers, layer norms, activations. Values go through them forward, and a slope back,
and each piece writes the gradient of its weights straight into the flat one. What a piece computes is kept in memory
that stays from call to call; a batch shared by all chains is read in place, and never copied for each of them.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from assay.landscape import layer_norms
from assay.landscape.losses import Batch, OutputLoss, cross_entropy, squared_error
from assay.landscape.target import Target
from assay.models.identity import hooks_of

aten = torch.ops.aten
SLOPES: Mapping[type[nn.Module], Callable[[Any, Tensor, Tensor, Tensor], Tensor]] = {
    nn.ReLU: lambda layer, slope, entered, left: aten.threshold_backward(slope, entered, 0),
    nn.Tanh: lambda layer, slope, entered, left: aten.tanh_backward(slope, left),
    nn.Sigmoid: lambda layer, slope, entered, left: aten.sigmoid_backward(slope, left),
    nn.GELU: lambda layer, slope, entered, left: aten.gelu_backward(
        slope, entered, approximate=layer.approximate
    ),
    nn.SiLU: lambda layer, slope, entered, left: aten.silu_backward(slope, entered),
    nn.Identity: lambda layer, slope, entered, left: slope,
}
"""How activations take a slope back, from what entered and what left."""


def is_stack(target: Target) -> bool:
    """Tell whether a module is a plain stack of linear layers, norms and activations under a loss of its outputs."""
    module = target.module
    if type(module) is not nn.Sequential or not isinstance(target.loss, OutputLoss):
        return False
    names = [f"{name}.{own}" for name, part in layers_of(module) for own, _ in part.named_parameters()]
    return (
        target.dtype in (torch.float32, torch.float64)
        and all(_is_plain(part) for _, part in layers_of(module))
        and not hooks_of(module)
        and list(target.parameters) == names  # all of them move, none is shared
        and target.data[0].ndim == 2
    )


def layers_of(module: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """Give the parts of a row by name, one that is there twice at both places."""
    return [(name, part) for name, part in module.named_modules(remove_duplicate=False) if name]


def _is_plain(part: nn.Module) -> bool:
    """Tell whether a part computes what its type says, from weights where its type keeps them."""
    return (
        (type(part) in (nn.Linear, *SLOPES) or layer_norms.is_plain(part))
        and {name for name, _ in part.named_parameters()} <= {"weight", "bias"}
        and not getattr(part, "inplace", False)
        and not hooks_of(part)
    )


class Stack:
    """A stack of linear layers, layer norms and elementwise activations, by batched matrix products."""

    def __init__(self, target: Target) -> None:
        assert isinstance(target.loss, OutputLoss) and isinstance(target.module, nn.Sequential)
        self._loss, self._layers, self._flat = target.loss, layers_of(target.module), Flat(target)
        self._examples, self._pieces, self._memory = 0, list[Piece](), Memory()
        # an example of class -100 is one that torch leaves out
        self._classes = target.loss is cross_entropy and bool((target.data[1] >= 0).all())

    def __call__(self, parameters: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `assay.landscape.gradients.Gradient`."""
        inputs, targets = (part.expand(len(parameters), *part.shape[1:]) for part in batch[:2])
        if inputs.shape[1] != self._examples:
            self._examples, self._pieces = inputs.shape[1], _pieces(self._layers, self._flat, inputs.shape[1])
        values = inputs
        for piece in self._pieces:
            values = piece.forward(parameters, values)
        loss, slope = self._outer(values, targets)
        gradient = torch.empty_like(parameters)
        for index in reversed(range(len(self._pieces))):
            slope = self._pieces[index].back(parameters, slope, gradient, onward=index > 0)
        return loss, gradient

    def _outer(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Give each chain's mean loss and its gradient with respect to the outputs."""
        examples = outputs.shape[1]
        if self._loss is squared_error and targets.shape == outputs.shape:
            away = torch.sub(outputs, targets, out=self._memory(outputs, outputs.shape, "away"))
            loss = torch.linalg.vector_norm(away, dim=(1, 2)).square() / examples
            return loss, away.mul_(2 / examples)
        if self._classes and targets.ndim == outputs.ndim - 1:
            slope, right = torch.log_softmax(outputs, -1), targets[..., None]
            loss = -slope.gather(-1, right).mean((1, 2))
            slope.exp_().scatter_add_(-1, right, slope.new_full((1, 1, 1), -1.0).expand(right.shape))
            return loss, slope.mul_(1 / examples)
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            each = self._loss.of(leaf.flatten(0, 1), targets.flatten(0, 1))
            loss = each.view(len(outputs), -1).mean(1)
            (slope,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), slope


class Flat:
    """Where the parameters of a module lie in flat vectors of all of them."""

    def __init__(self, target: Target) -> None:
        self._places = target.places
        self._shapes = {name: value.shape for name, value in target.parameters.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __call__(self, rows: Tensor, name: str) -> Tensor:
        """View the parameter of a name in rows (chain, d): (chain, *shape)."""
        return rows[:, self._places[name]].view(len(rows), *self._shapes[name])


class Memory:
    """Contiguous memory for each use, the same from call to call."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], Tensor] = {}

    def __call__(self, like: Tensor, shape: Sequence[int], use: str, index: int = 0) -> Tensor:
        """Give memory of a shape."""
        room = self._kept.get((use, index))
        if room is None or room.shape != torch.Size(shape):
            room = self._kept[use, index] = like.new_empty(shape)
        return room

    def product(self, left: Tensor, right: Tensor, use: str, index: int = 0) -> Tensor:
        """Multiply matrices of each chain."""
        room = self(left, (len(left), left.shape[1], right.shape[2]), use, index)
        return torch.bmm(left, right, out=room)


class Piece(Protocol):
    """Part of a stack; values and slopes are (chain, example, unit), rows of weights (chain, d)."""

    def forward(self, rows: Tensor, values: Tensor) -> Tensor:
        """Give what leaves it."""
        ...

    def back(self, rows: Tensor, slope: Tensor, gradient: Tensor, *, onward: bool) -> Tensor:
        """Write the gradient of its weights.

        Args:
            rows: of weights.
            slope: with respect to what left.
            gradient: where to write, (chain, d).
            onward: whether the slope with respect to what entered is wanted.

        Returns:
            That slope, or anything where it is not wanted.
        """
        ...


class Linear:
    r"""Linear layers with nothing between them, as one product.

    With :math:`P_l = W_l \cdots W_1`, what leaves is :math:`X P_k^\top`. With the slope S, :math:`R_k = S^\top X` and
    :math:`R_{l-1} = W_l^\top R_l`, the gradient of :math:`W_l` is :math:`R_l P_{l-1}^\top`. So examples are met
    in as many products as one layer takes, however many there are. The last layer alone may have a bias.
    """

    def __init__(self, names: Sequence[str], flat: Flat) -> None:
        self._weights, self._bias = [f"{name}.weight" for name in names], f"{names[-1]}.bias"
        self._flat, self._memory = flat, Memory()
        self._entered, self._products = torch.empty(0), list[Tensor]()

    def forward(self, rows: Tensor, values: Tensor) -> Tensor:
        """See `Piece`."""
        layers = [self._flat(rows, name) for name in self._weights]
        self._entered, self._products = values, layers[:1]
        for index, layer in enumerate(layers[1:]):
            self._products.append(self._memory.product(layer, self._products[-1], "product", index))
        whole = self._products[-1].mT
        if self._bias not in self._flat:
            return self._memory.product(values, whole, "left")
        room = self._memory(values, (*values.shape[:2], whole.shape[2]), "left")
        return torch.baddbmm(self._flat(rows, self._bias)[:, None], values, whole, out=room)

    def back(self, rows: Tensor, slope: Tensor, gradient: Tensor, *, onward: bool) -> Tensor:
        """See `Piece`."""
        if self._bias in self._flat:
            torch.sum(slope, 1, out=self._flat(gradient, self._bias))
        left, right = slope.mT, self._entered
        for index in reversed(range(1, len(self._weights))):
            met = self._memory.product(left, right, "met", index)
            self._write(gradient, index, met, self._products[index - 1].mT)
            left, right = self._flat(rows, self._weights[index]).mT, met
        self._write(gradient, 0, left, right)
        return self._memory.product(slope, self._products[-1], "slope") if onward else slope

    def _write(self, gradient: Tensor, index: int, left: Tensor, right: Tensor) -> None:
        place = self._flat(gradient, self._weights[index])
        if place.is_contiguous():
            torch.bmm(left, right, out=place)
        else:  # such a product would be taken chain by chain
            place.copy_(self._memory.product(left, right, "gradient", index))


class Norm:
    """A layer norm."""

    def __init__(self, name: str, eps: float, flat: Flat) -> None:
        self._weight, self._bias, self._eps = f"{name}.weight", f"{name}.bias", eps
        self._flat, self._memory = flat, Memory()
        self._entered = torch.empty(0)
        self._seen = layer_norms.Seen(self._entered, self._entered, self._entered)

    def forward(self, rows: Tensor, values: Tensor) -> Tensor:
        """See `Piece`."""
        normed = self._memory(values, values.shape, "normed")
        self._entered, self._seen = values, layer_norms.normalize(values, self._eps, normed)
        if self._weight not in self._flat:
            return normed
        weight, room = self._flat(rows, self._weight)[:, None], self._memory(values, values.shape, "left")
        if self._bias not in self._flat:
            return torch.mul(normed, weight, out=room)
        return torch.addcmul(self._flat(rows, self._bias)[:, None], normed, weight, out=room)

    def back(self, rows: Tensor, slope: Tensor, gradient: Tensor, *, onward: bool) -> Tensor:
        """See `Piece`."""
        if self._bias in self._flat:
            torch.sum(slope, 1, out=self._flat(gradient, self._bias))
        if self._weight in self._flat:
            room = self._memory(slope, slope.shape, "slope")
            torch.sum(
                torch.mul(slope, self._seen.normed, out=room), 1, out=self._flat(gradient, self._weight)
            )
            slope = torch.mul(slope, self._flat(rows, self._weight)[:, None], out=room)
        return layer_norms.pull_back(slope, self._entered, self._seen) if onward else slope


class Activation:
    """A function of each value; `SLOPES` has those that there are."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer, self._entered, self._left = layer, torch.empty(0), torch.empty(0)

    def forward(self, rows: Tensor, values: Tensor) -> Tensor:
        """See `Piece`."""
        self._entered, self._left = values, self._layer(values)
        return self._left

    def back(self, rows: Tensor, slope: Tensor, gradient: Tensor, *, onward: bool) -> Tensor:
        """See `Piece`."""
        return SLOPES[type(self._layer)](self._layer, slope, self._entered, self._left)


def _pieces(layers: Sequence[tuple[str, nn.Module]], flat: Flat, examples: int) -> list[Piece]:
    """Cut a stack into pieces, the best for so many examples."""
    pieces, row = list[Piece](), list[nn.Linear]()
    for index, (name, layer) in enumerate(layers):
        if isinstance(layer, nn.Linear):
            row.append(layer)
            following = layers[index + 1][1] if index + 1 < len(layers) else None
            if f"{name}.bias" not in flat and isinstance(following, nn.Linear):
                continue
            first = index + 1 - len(row)
            for run in runs(row, examples, first=not first):
                pieces.append(Linear([layers[first + number][0] for number in run], flat))
            row = []
        elif isinstance(layer, nn.LayerNorm):
            pieces.append(Norm(name, layer.eps, flat))
        else:
            pieces.append(Activation(layer))
    return pieces


def runs(row: Sequence[nn.Linear], examples: int, *, first: bool) -> list[range]:
    """Cut a row of linear layers into runs that are products, so that there is least to multiply.

    Args:
        row: of layers, none but the last with a bias.
        examples: in a batch.
        first: whether the row begins the stack, so that no slope is wanted before it.

    Returns:
        Numbers of the layers of each run.
    """
    widths = [row[0].in_features, *(layer.out_features for layer in row)]

    def cost(start: int, stop: int) -> int:
        meeting = (2 if first and start == 0 else 3) * examples * widths[start] * widths[stop]
        return meeting + 3 * widths[start] * sum(
            one * two for one, two in pairwise(widths[start + 1 : stop + 1])
        )

    best: list[tuple[int, list[range]]] = [(0, [])]
    for stop in range(1, len(widths)):
        ways = (
            (best[start][0] + cost(start, stop), [*best[start][1], range(start, stop)])
            for start in range(stop)
        )
        best.append(min(ways, key=lambda way: way[0]))
    return best[-1][1]
