"""Surgical operations on layers: which courses through the blocks each of them stands for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from assay.errors import BadInput
from assay.models.courses import Course, usual

Operation = Literal[
    "delete", "swap", "repeat", "skip", "reverse", "shuffle", "copies", "parallel", "drop", "reorder"
]
SCANS: tuple[Operation, ...] = ("delete", "swap", "repeat")
"""One surgery for each layer, or pair of neighbours."""
SPANS: tuple[Operation, ...] = ("skip", "reverse", "shuffle", "copies", "parallel")
"""On all chosen layers at once."""
RANDOM: tuple[Operation, ...] = ("shuffle", "drop", "reorder")
"""Drawn at random, several times."""
STEPS = 8
"""Sizes that ``drop`` and ``reorder`` are tried with."""


@dataclass(frozen=True)
class Surgery:
    """One course, and what was done to get it.

    Attributes:
        operation: what kind.
        name: ``delete.3``, ``swap.3.4``, ``reverse.8-22``, ``drop.5.0`` (five dropped, draw 0).
        layer: the first layer concerned; -1 for those drawn at random.
        size: layers concerned; of ``reorder``, exchanges of two layers.
        draw: number of the draw; 0 for what is not drawn.
        course: the steps.
    """

    operation: Operation
    name: str
    layer: int
    size: int
    draw: int
    course: Course

    def kendall_tau(self, layers: int) -> float:
        """Rank correlation of the order with the usual one; NaN where it is no order of all layers, each once."""
        order = [layer for step in self.course for layer in step]
        if sorted(order) != list(range(layers)) or len(self.course) < layers:
            return float("nan")
        places = np.array(order)
        later = np.triu_indices(layers, 1)
        return float(np.sign(places[None] - places[:, None])[later].mean()) if layers > 1 else 1.0


def surgeries(
    operations: Sequence[Operation], layers: int, chosen: Sequence[int], *, draws: int, seed: int
) -> list[Surgery]:
    """The surgeries that operations stand for.

    Args:
        operations: which.
        layers: number of layers L.
        chosen: the layers operated on; empty for all, or for the middle half where all are operated on at once.
        draws: of those that are drawn at random.
        seed: of the draws.

    Returns:
        The surgeries, by operation in the order given.

    Raises:
        BadInput: no operation, one twice, a layer out of range or twice, too few layers, or no draw.
    """
    if not operations or len(set(operations)) < len(operations):
        raise BadInput(f"operations={tuple(operations)}: name one or several, each once")
    if len(set(chosen)) < len(chosen) or any(not 0 <= layer < layers for layer in chosen):
        raise BadInput(f"layers={tuple(chosen)}: the model has layers 0 to {layers - 1}; name each once")
    if draws < 1 or seed < 0:
        raise BadInput(f"draws={draws}, seed={seed}: draws must be at least 1, seed at least 0")
    found = []
    for operation in operations:
        where = sorted(chosen) or _by_default(operation, layers)
        if len(where) < (1 if operation in ("delete", "repeat", "skip", "drop") else 2):
            raise BadInput(f"{operation} of layers {tuple(where)}: name two or more")
        made = _MAKERS[operation](where, layers, draws, seed)
        if not made:
            raise BadInput(f"{operation} of layers {tuple(where)}: no two of them are neighbours")
        found += made
    return found


def _by_default(operation: Operation, layers: int) -> list[int]:
    if operation in SPANS and layers > 3:
        return list(range(layers // 4, layers - layers // 4))
    return list(range(layers))


def _delete(where: list[int], layers: int, _: int, __: int) -> list[Surgery]:
    return [Surgery("delete", f"delete.{i}", i, 1, 0, _without(layers, [i])) for i in where]


def _swap(where: list[int], layers: int, _: int, __: int) -> list[Surgery]:
    pairs = [(a, b) for a, b in zip(where, where[1:], strict=False) if b == a + 1]
    return [Surgery("swap", f"swap.{a}.{b}", a, 2, 0, _put(layers, [a, b], [b, a])) for a, b in pairs]


def _repeat(where: list[int], layers: int, _: int, __: int) -> list[Surgery]:
    twice = [(i, tuple(s for s in usual(layers) for _ in range(2 if s == (i,) else 1))) for i in where]
    return [Surgery("repeat", f"repeat.{i}", i, 1, 0, course) for i, course in twice]


def _skip(where: list[int], layers: int, _: int, __: int) -> list[Surgery]:
    return [Surgery("skip", f"skip.{_span(where)}", where[0], len(where), 0, _without(layers, where))]


def _reverse(where: list[int], layers: int, _: int, __: int) -> list[Surgery]:
    course = _put(layers, where, where[::-1])
    return [Surgery("reverse", f"reverse.{_span(where)}", where[0], len(where), 0, course)]


def _copies(where: list[int], layers: int, _: int, __: int) -> list[Surgery]:
    course = _put(layers, where, [where[len(where) // 2]] * len(where))
    return [Surgery("copies", f"copies.{_span(where)}", where[0], len(where), 0, course)]


def _parallel(where: list[int], layers: int, _: int, __: int) -> list[Surgery]:
    together: list[tuple[int, ...]] = []
    for step in usual(layers):
        if step[0] == where[0]:
            together.append(tuple(where))
        elif step[0] not in where:
            together.append(step)
    return [Surgery("parallel", f"parallel.{_span(where)}", where[0], len(where), 0, tuple(together))]


def _shuffle(where: list[int], layers: int, draws: int, seed: int) -> list[Surgery]:
    orders = [_other_order(where, None, _rng(seed, "shuffle", draw, 0)) for draw in range(draws)]
    return [
        Surgery(
            "shuffle",
            f"shuffle.{_span(where)}.{draw}",
            where[0],
            len(where),
            draw,
            _put(layers, where, order),
        )
        for draw, order in enumerate(orders)
    ]


def _drop(where: list[int], layers: int, draws: int, seed: int) -> list[Surgery]:
    found = []
    for size in _sizes(max(1, len(where) // 2)):
        for draw in range(draws):
            left_out = _rng(seed, "drop", draw, size).permutation(where)[:size].tolist()
            found.append(Surgery("drop", f"drop.{size}.{draw}", -1, size, draw, _without(layers, left_out)))
    return found


def _reorder(where: list[int], layers: int, draws: int, seed: int) -> list[Surgery]:
    found = []
    for size in _sizes(2 * len(where)):
        if len(where) == 2 and size % 2 == 0:
            continue
        for draw in range(draws):
            course = _put(layers, where, _other_order(where, size, _rng(seed, "reorder", draw, size)))
            found.append(Surgery("reorder", f"reorder.{size}.{draw}", -1, size, draw, course))
    return found


_MAKERS: dict[Operation, Callable[[list[int], int, int, int], list[Surgery]]] = {
    "delete": _delete, "swap": _swap, "repeat": _repeat, "skip": _skip, "reverse": _reverse, "shuffle": _shuffle,
    "copies": _copies, "parallel": _parallel, "drop": _drop, "reorder": _reorder,
}  # fmt: skip


def _other_order(where: Sequence[int], exchanges: int | None, rng: np.random.Generator) -> list[int]:
    """Layers in a random order, or after random exchanges of two; drawn again while it is the one they had."""
    order = list(where)
    while order == list(where):
        if exchanges is None:
            order = rng.permutation(where).tolist()
        for _ in range(exchanges or 0):
            a, b = rng.choice(len(where), 2, replace=False)
            order[a], order[b] = order[b], order[a]
    return order


def _without(layers: int, left_out: Sequence[int]) -> Course:
    return tuple(step for step in usual(layers) if step[0] not in left_out)


def _put(layers: int, where: Sequence[int], order: Sequence[int]) -> Course:
    """The usual course with other layers in some places."""
    instead = dict(zip(where, order, strict=True))
    return tuple((instead.get(layer, layer),) for layer in range(layers))


def _span(where: Sequence[int]) -> str:
    whole = list(where) == list(range(where[0], where[-1] + 1))
    return f"{where[0]}-{where[-1]}" if whole else "+".join(map(str, where))


def _sizes(most: int) -> list[int]:
    """Sizes from 1 to the most, denser at the lower end."""
    return sorted({int(size) for size in np.geomspace(1, most, STEPS).round()})


def _rng(seed: int, operation: Operation, draw: int, size: int) -> np.random.Generator:
    """Numbers of one draw, whatever else is drawn."""
    return np.random.default_rng([seed, draw, size, *map(ord, operation)])
