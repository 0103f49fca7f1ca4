"""Data sets of measurements: inputs cut from texts, and the partners that inputs are resampled from."""

import pytest
import torch

from assay.activations.data_set import inputs_of, partners_of
from assay.errors import BadInput
from assay.models.model import Model


@pytest.mark.parametrize("count", [2, 3, 11])
def test_each_input_has_one_partner_that_is_another(count: int) -> None:
    found = [partners_of(count, torch.Generator().manual_seed(seed)) for seed in range(20)]
    for partners in found:
        assert sorted(partners) == list(range(count))
        assert all(partner != number for number, partner in enumerate(partners))
    assert len({tuple(partners) for partners in found}) > (count > 2)  # the seed tells


@pytest.mark.parametrize("length", [None, 3])
def test_the_first_inputs_are_taken_and_fewer_than_one_refused(tiny_llama: Model, length: int | None) -> None:
    rows = [[3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert inputs_of(tiny_llama, rows, length, 2) == ((3, 4, 5), (6, 7, 8))
    for count in (0, -1):
        with pytest.raises(BadInput, match=f"max_inputs={count}: the data set is empty"):
            inputs_of(tiny_llama, rows, length, count)


def test_a_text_longer_than_the_context_can_be_cut(tiny_llama: Model) -> None:
    context = tiny_llama.context_length
    assert context is not None
    text = [3] * (2 * context + 1)
    assert len(inputs_of(tiny_llama, text, context)) == 2
    with pytest.raises(BadInput, match=f"the prompt has {2 * context + 1} tokens"):
        inputs_of(tiny_llama, text, None)
    with pytest.raises(BadInput, match=f"length={context + 1}: the context of .* has {context} tokens"):
        inputs_of(tiny_llama, text, context + 1)
