"""The untrained twin: the same architecture and scales, other weights, nothing shared."""

import pytest
import torch

from assay.models.intervention import capture
from assay.models.model import Model, wrap
from assay.models.twin import untrained_twin
from families import FAMILIES


@pytest.fixture(scope="module", params=["llama", "gpt2", "bloom"])
def model(request: pytest.FixtureRequest) -> Model:
    return wrap(FAMILIES[request.param].build())


def test_matrices_keep_their_scale_and_lose_their_entries(model: Model) -> None:
    twin = dict(untrained_twin(model, seed=3).module.named_parameters())
    for name, parameter in model.module.named_parameters():
        own, other = parameter.detach(), twin[name].detach()
        if own.ndim > 1:
            spread = own.std() / (2 * own.numel()) ** 0.5  # of an estimated standard deviation
            assert abs(float(other.std() - own.std())) < 5 * float(spread), name
            correlation = torch.corrcoef(torch.stack([own.flatten(), other.flatten()]))[0, 1]
            assert abs(float(correlation)) < 5 / own.numel() ** 0.5, name
        else:
            assert torch.equal(own.sort().values, other.sort().values), name
            assert not torch.equal(own, other), name


def test_the_model_itself_is_left_alone(model: Model) -> None:
    before = model.weight_hash()
    twin = untrained_twin(model)
    assert wrap(model.module).weight_hash() == before
    assert twin.weight_hash() != before
    storages = {parameter.data_ptr() for parameter in model.module.parameters()}
    assert storages.isdisjoint(parameter.data_ptr() for parameter in twin.module.parameters())


def test_a_seed_is_one_twin(model: Model) -> None:
    assert untrained_twin(model, seed=3).weight_hash() == untrained_twin(model, seed=3).weight_hash()
    assert untrained_twin(model, seed=3).weight_hash() != untrained_twin(model, seed=4).weight_hash()


def test_the_twin_is_a_model_like_the_other(model: Model) -> None:
    twin = untrained_twin(model)
    assert twin.sites() == model.sites()
    assert twin.source == f"untrained twin of {model.source}"
    assert twin.tokenizer is model.tokenizer
    own, other = (capture(m, [5, 6, 7, 8], ["resid_post.1"])["resid_post.1"] for m in (model, twin))
    assert 0.2 < float(other.norm() / own.norm()) < 5
    assert twin.parts.blocks[0].module is not model.parts.blocks[0].module


def test_tied_weights_stay_tied() -> None:
    model = wrap(FAMILIES["gpt2"].build())
    assert model.module.get_input_embeddings().weight is model.module.get_output_embeddings().weight
    twin = untrained_twin(model)
    assert twin.module.get_input_embeddings().weight is twin.module.get_output_embeddings().weight


def test_a_plain_module_has_a_twin_too() -> None:
    module = torch.nn.Linear(4, 3)
    twin = untrained_twin(wrap(module), seed=1)
    assert twin.anatomy is None
    assert not torch.equal(twin.module.weight, module.weight)
