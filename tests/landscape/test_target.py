from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from assay.errors import BadInput
from assay.landscape.losses import squared_error
from assay.landscape.minimum import look
from assay.landscape.target import target

INPUTS, ANSWERS = torch.arange(12.0).view(4, 3), torch.ones(4, 2)


def module() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5), nn.Linear(2, 2))


def test_data_come_as_tensors_datasets_or_loaders() -> None:
    dataset = TensorDataset(INPUTS, ANSWERS)
    made = [
        target(module(), squared_error, data)
        for data in ((INPUTS, ANSWERS), [INPUTS, ANSWERS], dataset, DataLoader(dataset, batch_size=3))
    ]
    assert {each.data_hash() for each in made} == {made[0].data_hash()}
    assert {each.n for each in made} == {4}
    assert torch.equal(made[2].data[0], INPUTS)
    assert target(module(), squared_error, (INPUTS + 1, ANSWERS)).data_hash() != made[0].data_hash()


def test_the_hash_of_the_weights_is_that_of_all_that_decides_where_chains_go() -> None:
    network = module()
    made = target(network, squared_error, (INPUTS, ANSWERS))
    before = made.weight_hash()
    assert target(network, squared_error, (INPUTS, ANSWERS)).weight_hash() == before
    masked = target(network, squared_error, (INPUTS, ANSWERS), mask={"0.bias": torch.tensor([True, False])})
    assert masked.weight_hash() != before
    assert masked.mask is not None
    assert list(masked.parameters) == ["0.bias"]
    assert masked.mask.tolist() == [True, False]
    other = target(network, squared_error, (INPUTS, ANSWERS), mask={"2.bias": torch.tensor([True, False])})
    assert other.weight_hash() != masked.weight_hash()
    network[2].bias.data += 1
    assert made.weight_hash() != before


def test_rows_by_name_are_read_by_their_token_ids() -> None:
    rows = [{"input_ids": [1, 2, 3], "text": "one"}, {"input_ids": [4, 5, 6], "text": "two"}]
    made = target(nn.Embedding(9, 2), lambda m, b: m(b[0]).sum((1, 2)), rows)
    assert made.data[0].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_all_of_the_data_come_in_blocks_that_fit_in_memory() -> None:
    ids = torch.zeros(2500, 3, dtype=torch.int64)
    made = target(nn.Embedding(9, 2), lambda m, b: m(b[0]).sum((1, 2)), (ids, ids))
    blocks = list(made.blocks())
    assert [len(block[1]) for block in blocks] == [341] * 7 + [113]
    few = target(module(), squared_error, (INPUTS, ANSWERS))
    assert [len(block[0]) for block in few.blocks()] == [4]


def test_the_module_is_in_eval_mode_only_for_a_while() -> None:
    network = module()
    network[0].eval()
    with target(network, squared_error, (INPUTS, ANSWERS)).evaluating():
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network] == [False, True, True]
    assert network.training


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[torch.Tensor]:
        yield INPUTS[0]


def frozen() -> nn.Module:
    return module().requires_grad_(False)


def broken() -> nn.Module:
    network = module()
    network[0].weight.data[0, 0] = torch.nan
    return network


def half() -> nn.Module:
    return module().bfloat16()


def column() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 1))


def row_of_numbers() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))


def in_half(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return module(batch[0]).square().sum(1).bfloat16()


@pytest.mark.parametrize(
    ("make", "loss", "data", "mask", "message"),
    [
        (module, lambda m, b: m(b[0]).mean(), INPUTS, None, "one value for each example"),
        (module, lambda m, b: m(b[0]).sum(1) * torch.inf, INPUTS, None, "NaN or infinite at the anchor"),
        (frozen, squared_error, (INPUTS, ANSWERS), None, "requires grad"),
        (broken, squared_error, (INPUTS, ANSWERS), None, "weights are NaN"),
        (module, squared_error, (INPUTS, ANSWERS[:3]), None, r"lengths \[4, 3\]"),
        (module, squared_error, (INPUTS.to("meta"), ANSWERS), None, "on cpu, data on meta"),
        (module, squared_error, Endless(), None, "with a length"),
        (module, squared_error, (INPUTS, ANSWERS), {"0.weigth": ANSWERS}, "parameters that can move: 0.bias"),
        (module, squared_error, (INPUTS, ANSWERS), {}, "names no parameter"),
        (module, squared_error, (INPUTS, ANSWERS), "mlp.0", "is no parameter's name; the first are 0.weight"),
        (module, None, INPUTS, None, "no loss was given"),
        (module, "square_error", INPUTS, None, "ready-made are next_token"),
        (module, squared_error, "here.txt", None, "needs a language model"),
        (module, squared_error, (INPUTS, ANSWERS), {"0.bias": torch.ones(3, dtype=torch.bool)}, "expected bool"),
        (module, squared_error, (INPUTS, ANSWERS), {"0.bias": torch.ones(2)}, "expected bool"),
        (module, squared_error, (INPUTS, ANSWERS), {"0.bias": torch.zeros(2, dtype=torch.bool)}, "no parameter move"),
        (column, squared_error, (INPUTS, torch.ones(4)), None, r"outputs \(2, 1\) and targets \(2,\): expected"),
        (row_of_numbers, squared_error, (INPUTS, torch.ones(4, 1)), None, r"outputs \(2,\) and targets \(2, 1\)"),
        (module, squared_error, INPUTS, None, "the loss of 2 examples cannot be taken: tuple index out of range"),
        (module, squared_error, (INPUTS[:, :2], ANSWERS), None, r"cannot be taken: mat1 .*\(2, 2\) torch.float32"),
        (module, squared_error, [(torch.ones(3), 1.0), (torch.ones(2), 1.0)], None, "of a list do not fit into one"),
        (module, squared_error, [(torch.ones(3), 1.0), (torch.ones(3),)], None, "do not fit into one"),
        (module, squared_error, [{"text": "one"}, {"text": "two"}], None, "leave other columns out"),
        (module, squared_error, torch.tensor(1.0), None, r"lengths \[None\]: expected one"),
        (module, lambda m, b: 1.0, INPUTS, None, "has shape float: expected one value for each"),
        (half, squared_error, (INPUTS.bfloat16(), ANSWERS.bfloat16()), None, "weights that move are in torch.bfloat16"),
        (module, in_half, INPUTS, None, "loss is in torch.bfloat16: steps and losses would be lost"),
    ],
)  # fmt: skip
def test_bad_input_says_what_to_pass(make, loss, data, mask, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        target(make(), loss, data, mask=mask)


def test_a_loss_that_is_not_finite_is_found_wherever_it_is() -> None:
    answers = torch.ones(9000, 2)
    answers[5000, 1] = torch.nan
    made = target(module(), squared_error, (torch.ones(9000, 3), answers))
    with pytest.raises(BadInput, match="the loss of example 5000 is NaN or infinite"):
        _ = made.anchor_loss
    with pytest.raises(BadInput, match="example 5000"):
        look(made, 100.0)


def test_numbers_for_outputs_are_compared_one_by_one() -> None:
    network, answers = row_of_numbers(), torch.arange(4.0)
    expected = (network(INPUTS) - answers).square().detach()
    assert torch.equal(squared_error(network, (INPUTS, answers)), expected)
    made = target(network, squared_error, (INPUTS, answers))
    assert float(made.anchor_loss) == pytest.approx(float(expected.mean()))
