import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from assay.errors import BadInput
from assay.landscape.examples import tensors_of
from assay.landscape.losses import OutputLoss, cross_entropy, squared_error
from assay.landscape.minimum import look
from assay.landscape.target import target
from assay.models.model import Model

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


class Endless(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        yield INPUTS[0]


class Counted(Endless):
    def __len__(self) -> int:
        return 4


class Broken(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> torch.Tensor:
        return {1: INPUTS[0]}[number]


DATASET = TensorDataset(INPUTS, ANSWERS)


def halved(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, answers = zip(*rows, strict=True)
    return torch.stack(inputs) / 2, torch.stack(answers)


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (DataLoader(DATASET, 3, sampler=SubsetRandomSampler([3, 1])), INPUTS[[1, 3]]),
        (DataLoader(DATASET, 3, sampler=[2, 0]), INPUTS[[0, 2]]),
        (DataLoader(DATASET, batch_sampler=BatchSampler(SubsetRandomSampler([2]), 3, False)), INPUTS[[2]]),
        (DataLoader(DATASET, batch_sampler=[[1], [3, 0]]), INPUTS[[0, 1, 3]]),
        (DataLoader(DATASET, 3, shuffle=True, drop_last=True), INPUTS),
        (DataLoader(DATASET, batch_size=None), INPUTS),
        (DataLoader(DATASET, 2, collate_fn=halved), INPUTS / 2),
        (DataLoader(DATASET, batch_size=None, collate_fn=lambda row: (row[0] + 1, row[1])), INPUTS + 1),
        (DataLoader(Subset(INPUTS, range(4)), 2), INPUTS),
        (DataLoader(DATASET, 4, collate_fn=lambda rows: {"input_ids": halved(rows)[0]}), INPUTS / 2),
    ],
)
def test_a_loader_has_the_examples_of_its_sampler_as_its_collate_fn_gives_them(
    loader: DataLoader[Any], expected: torch.Tensor
) -> None:
    before = torch.get_rng_state()
    assert torch.equal(tensors_of(loader)[0], expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DATASET, 3, sampler=WeightedRandomSampler([0.1, 0.9, 0.5, 0.3], 40)),
        DataLoader(DATASET, 3, sampler=[0, 0, 1]),
        DataLoader(DATASET, batch_size=None, sampler=BatchSampler(range(4), 2, drop_last=False)),
    ],
)
def test_a_loader_whose_sampler_weighs_examples_is_refused(loader: DataLoader[Any]) -> None:
    with pytest.raises(BadInput, match="takes examples more than once, or others each time"):
        tensors_of(loader)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with pytest.raises(BadInput, match="RandomSampler takes"):
            tensors_of(
                DataLoader(TensorDataset(torch.ones(90, 3)), sampler=RandomSampler(range(90), num_samples=9))
            )


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
        (module, squared_error, Counted(), None, "data is a Counted: expected"),
        (module, squared_error, DataLoader(Counted(), 2), None, "data is a Counted: expected"),
        (module, squared_error, {"x": INPUTS, "y": ANSWERS}, None, "data is a dict: expected a tensor, a tuple"),
        (module, squared_error, Broken(), None, "Broken of length 4, which gives no example 0: KeyError 0"),
        (module, nn.MSELoss(reduction="none"), (INPUTS, ANSWERS), None, r"loss\(module, batch\).*losses.OutputLoss"),
        (module, lambda m, b: m.missing, INPUTS, None, "no attribute 'missing'"),
        (module, lambda m, b: {}[3], INPUTS, None, "cannot be taken: 3"),
        (module, squared_error, (INPUTS, ANSWERS), {"0.weigth": ANSWERS}, "parameters that can move: 0.bias"),
        (module, squared_error, (INPUTS, ANSWERS), {}, "names no parameter"),
        (module, squared_error, (INPUTS, ANSWERS), "mlp.0", "is no parameter's name; the first are 0.weight"),
        (module, None, INPUTS, None, "no loss was given"),
        (module, "square_error", INPUTS, None, "ready-made are next_token"),
        (module, squared_error, "here.txt", None, "needs a language model"),
        (module, squared_error, (INPUTS, ANSWERS), {"0.bias": torch.ones(3, dtype=torch.bool)}, "a tensor of bool"),
        (module, squared_error, (INPUTS, ANSWERS), {"0.bias": torch.ones(2)}, "a tensor of bool"),
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


@pytest.mark.parametrize("given", [None, module])
def test_what_is_no_module_is_refused(given: object) -> None:
    with pytest.raises(BadInput, match="the module is a (NoneType|function): expected an nn.Module"):
        inspect.unwrap(target)(
            given, squared_error, (INPUTS, ANSWERS)
        )  # the checker of types refuses it otherwise


def test_a_loss_that_is_not_finite_is_found_wherever_it_is() -> None:
    answers = torch.ones(9000, 2)
    answers[5000, 1] = torch.nan
    made = target(module(), squared_error, (torch.ones(9000, 3), answers))
    with pytest.raises(BadInput, match="the loss of example 5000 is NaN or infinite"):
        _ = made.anchor_loss
    with pytest.raises(BadInput, match="example 5000"):
        look(made, 100.0, 1.0)


def test_a_loss_of_outputs_and_targets_is_made_one() -> None:
    made = target(module(), OutputLoss(nn.MSELoss(reduction="none")), (INPUTS, ANSWERS))
    with made.evaluating():
        expected = (made.module(INPUTS) - ANSWERS).square().mean().item()
    assert float(made.anchor_loss) == pytest.approx(expected)


@pytest.mark.parametrize("hooked", [False, True])
def test_a_class_out_of_range_is_found_wherever_it_is(hooked: bool) -> None:
    network, classes = module(), torch.zeros(9000, dtype=torch.int64)
    if hooked:  # which is no plain stack
        network.register_forward_hook(lambda *_: None)
    classes[5000] = 7
    made = target(network, cross_entropy, (torch.ones(9000, 3), classes))
    with pytest.raises(
        BadInput,
        match=r"the loss of 4096 examples cannot be taken: Target 7 is out of bounds\. It was .*\(4096,\) torch.int64",
    ):
        look(made, 100.0, 1.0)


def test_a_token_outside_the_vocabulary_is_refused_wherever_it_is(tiny_llama: Model) -> None:
    ids = torch.zeros(40, 6, dtype=torch.int64)
    ids[33, 2] = 10**6
    with pytest.raises(BadInput, match="token ids run from 0 to 1000000, the vocabulary from 0 to"):
        target(tiny_llama, None, ids)


def test_numbers_for_outputs_are_compared_one_by_one() -> None:
    network, answers = row_of_numbers(), torch.arange(4.0)
    expected = (network(INPUTS) - answers).square().detach()
    assert torch.equal(squared_error(network, (INPUTS, answers)), expected)
    made = target(network, squared_error, (INPUTS, answers))
    assert float(made.anchor_loss) == pytest.approx(float(expected.mean()))
