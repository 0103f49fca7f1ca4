"""Edits on plain tensors: what each form puts where, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from assay.errors import BadInput
from assay.models.edits import Edit, apply, at

RESID = {"rows": 0, "positions": 1, "heads": 2, "neurons": -1}
PATTERN = {"rows": 0, "heads": 1, "positions": 2, "neurons": -1}


@pytest.fixture
def heads() -> Tensor:
    """(row, pos, head, d_head), every entry another number."""
    return torch.arange(2 * 5 * 4 * 3, dtype=torch.float32).view(2, 5, 4, 3)


def edited(tensor: Tensor, edit: Edit, axes: dict[str, int] = RESID) -> Tensor:
    before = tensor.clone()
    result = apply(edit, tensor, axes, "z.1")
    assert torch.equal(tensor, before)  # what was given is left as it was
    return result


def test_a_number_a_tensor_and_a_function_replace_the_whole(heads: Tensor) -> None:
    assert torch.equal(edited(heads, 2), torch.full_like(heads, 2))
    assert torch.equal(edited(heads, torch.ones(3)), torch.ones_like(heads))
    assert torch.equal(edited(heads, lambda x: x + 1), heads + 1)
    doubled = edited(heads, torch.ones(3, dtype=torch.float64))
    assert doubled.dtype == heads.dtype


def test_a_sequence_is_applied_in_order(heads: Tensor) -> None:
    assert torch.equal(edited(heads, [lambda x: x + 1, lambda x: 2 * x]), 2 * (heads + 1))
    assert torch.equal(edited(heads, []), heads)


def test_lists_take_their_cross_product(heads: Tensor) -> None:
    expected = heads.clone()
    for row in (1,):
        for position in (0, 3):
            for head in (2, 3):
                expected[row, position, head, 1] = -1
    assert torch.equal(edited(heads, at(-1, rows=1, positions=[0, 3], heads=[2, 3], neurons=1)), expected)


def test_one_axis_between_others_is_restricted_alone(heads: Tensor) -> None:
    expected = heads.clone()
    expected[:, :, 2] = 0
    assert torch.equal(edited(heads, at(0, heads=2)), expected)
    expected = heads.clone()
    expected[..., 2] = 7
    assert torch.equal(edited(heads, at(7, neurons=-1)), expected)


def test_slices_and_negative_positions(heads: Tensor) -> None:
    expected = heads.clone()
    expected[:, 1:4] = 0
    assert torch.equal(edited(heads, at(0, positions=slice(1, 4))), expected)
    expected = heads.clone()
    expected[:, [3, 4]] = 0
    assert torch.equal(edited(heads, at(0, positions=[-2, -1])), expected)
    assert torch.equal(edited(heads, at(0, positions=[])), heads)


def test_a_value_is_broadcast_to_the_part_and_a_function_sees_the_part(heads: Tensor) -> None:
    value = torch.randn(2, 2, 1, 3, generator=torch.Generator().manual_seed(0))
    expected = heads.clone()
    expected[:, [1, 4], 3:4] = value
    assert torch.equal(edited(heads, at(value, positions=[1, 4], heads=3)), expected)
    seen: list[Tensor] = []

    def swap(part: Tensor) -> Tensor:
        seen.append(part)
        return part.flip(1)

    swapped = edited(heads, at(swap, positions=[1, 4]))
    assert seen[0].shape == (2, 2, 4, 3)
    assert torch.equal(swapped[:, 1], heads[:, 4])
    assert torch.equal(swapped[:, 4], heads[:, 1])


def test_restrictions_nest(heads: Tensor) -> None:
    expected = heads.clone()
    expected[0, 2, 1] = 0
    assert torch.equal(edited(heads, at(at(0, heads=1), rows=0, positions=2)), expected)
    assert torch.equal(edited(heads, at([at(0, heads=1), at(0, heads=1)], rows=0, positions=2)), expected)


def test_queries_of_a_pattern_are_its_positions() -> None:
    pattern = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    expected = pattern.clone()
    expected[:, 3, 5, 0] = 1
    assert torch.equal(edited(pattern, at(1.0, heads=3, positions=5, neurons=0), PATTERN), expected)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (torch.zeros(4), r"shape \(4,\), which does not broadcast to the part it replaces, \(2, 5, 4, 3\)"),
        (at(torch.zeros(2, 3, 4, 3), positions=[0, 1]), r"part it replaces, \(2, 2, 4, 3\)"),
        (at(0, positions=5), r"positions \[5\] at site 'z.1': there are 5, numbered 0 to 4"),
        (at(0, positions=-6), r"positions \[-6\]"),
        (at(0, heads=[0, 4]), r"heads \[0, 4\] at site 'z.1': there are 4"),
        (at(0, rows=2), r"rows \[2\] at site 'z.1': there are 2"),
        (at(0, neurons=3), r"neurons \[3\] at site 'z.1': there are 3"),
        (lambda x: x[:, :2], "does not broadcast"),
        (lambda _: None, "the edit at 'z.1' returned NoneType, not a tensor"),
    ],
)
def test_a_wrong_edit_is_refused(heads: Tensor, edit: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        apply(edit, heads, RESID, "z.1")


@pytest.mark.parametrize("name", ["heads", "positions"])
def test_an_axis_the_site_lacks_is_not_taken_for_another(name: str) -> None:
    tensor = torch.zeros(2, 5, 8) if name == "heads" else torch.zeros(2, 8)
    with pytest.raises(BadInput, match=f"site 'resid_post.1' has no {name}"):
        apply(at(0, **{name: 1}), tensor, RESID, "resid_post.1")
