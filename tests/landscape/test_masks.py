"""Masks of one head and one MLP: what they let move changes what that part writes, and nothing else does."""

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import assay
from assay.errors import BadInput
from assay.landscape.losses import squared_error
from assay.landscape.masks import flat_mask, flattened, head_mask, mask_of, mlp_mask, named_mask
from assay.landscape.target import target
from assay.models.model import Model

IDS = [5, 17, 2, 44, 9, 31]


def gpt2() -> Model:
    return assay.wrap(
        GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=60, n_positions=16))
    )


def neox() -> Model:
    config = GPTNeoXConfig(
        num_hidden_layers=2, num_attention_heads=4, hidden_size=32, intermediate_size=48, vocab_size=60
    )
    return assay.wrap(GPTNeoXForCausalLM(config))


@pytest.fixture(params=["llama", "gpt2", "neox"])
def model(request: pytest.FixtureRequest, make_tiny_llama) -> Model:
    with torch.random.fork_rng(devices=[]):  # transformers draws weights from the global generator only
        torch.manual_seed(0)
        return (
            make_tiny_llama() if request.param == "llama" else {"gpt2": gpt2, "neox": neox}[request.param]()
        )


def perturbed(model: Model, mask: dict[str, torch.Tensor]) -> None:
    """Shift what a mask lets move."""
    with torch.no_grad():
        for name, part in mask.items():
            model.module.get_parameter(name)[part] += 0.3


@pytest.mark.parametrize("head", [0, 1, 3])
def test_a_head_is_what_its_mask_moves_and_no_more(model: Model, head: int) -> None:
    block = model.parts.blocks[1]
    group = block.n_heads // block.n_kv_heads
    mask = head_mask(model, 1, head)
    sites = ["q.1", "k.1", "v.1", "z.1"]
    before = assay.capture(model, [IDS], sites)
    perturbed(model, mask)
    after = assay.capture(model, [IDS], sites)
    for site, mine in (("q.1", head), ("k.1", head // group), ("v.1", head // group)):
        moved = (after[site] - before[site]).abs().amax((0, 1, 3)) > 1e-6
        assert moved.nonzero().flatten().tolist() == [mine]
    # what its group reads is shared, what it writes from is its own
    moved = (after["z.1"] - before["z.1"]).abs().amax((0, 1, 3)) > 1e-6
    assert moved[head]
    assert moved.nonzero().flatten().tolist() == [
        h for h in range(block.n_heads) if h // group == head // group
    ]


def test_the_columns_of_a_head_write_what_that_head_gives(model: Model) -> None:
    mask = head_mask(model, 1, 2)
    out = model.parts.blocks[1].attention_out
    assert out is not None
    (name,) = [each for each in mask if model.module.get_parameter(each) is out.weight]
    before = assay.capture(model, [IDS], ["z.1", "attn_out.1"])
    perturbed(model, {name: mask[name]})
    after = assay.capture(model, [IDS], ["attn_out.1"])["attn_out.1"]
    written = 0.3 * before["z.1"][:, :, 2].sum(-1, keepdim=True)
    torch.testing.assert_close(after - before["attn_out.1"], written.expand_as(after), atol=1e-5, rtol=1e-4)


def test_masks_count_what_they_hold(make_tiny_llama) -> None:
    model = make_tiny_llama()
    # 8 rows of q, of k and of v, and 8 columns of o, each 32 long; the heads of a group share k and v
    assert sum(int(part.sum()) for part in head_mask(model, 0, 0).values()) == 4 * 8 * 32
    shared = head_mask(model, 0, 0)["model.layers.0.self_attn.k_proj.weight"]
    assert torch.equal(shared, head_mask(model, 0, 1)["model.layers.0.self_attn.k_proj.weight"])
    assert not torch.equal(shared, head_mask(model, 0, 2)["model.layers.0.self_attn.k_proj.weight"])
    assert sum(int(part.sum()) for part in mlp_mask(model, -1).values()) == 3 * 32 * 56
    assert head_mask(model, -1, 1).keys() == head_mask(model, 2, 1).keys()


def test_biases_of_a_head_go_with_its_rows() -> None:
    mask = head_mask(gpt2(), 0, 1)
    assert sum(int(part.sum()) for part in mask.values()) == 3 * 8 * 32 + 3 * 8 + 8 * 32
    assert mask["transformer.h.0.attn.c_attn.bias"].nonzero().flatten().tolist() == [
        *range(8, 16), *range(40, 48), *range(72, 80),
    ]  # fmt: skip


def test_names_stand_for_masks(make_tiny_llama) -> None:
    model = make_tiny_llama()
    for words, expected in (("head.1.2", head_mask(model, 1, 2)), ("mlp.0", mlp_mask(model, 0))):
        found = named_mask(model, words)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    stack = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    assert list(named_mask(stack, "*.bias")) == ["0.bias", "1.bias"]
    made = target(stack, lambda m, b: m(b[0]).sum(1), torch.zeros(2, 3), mask="0.*")
    assert made.d == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("head.3.0", "layers 0 to 2"),
        ("head.0.4", "there are 4"),
        ("mlp.7", "layers 0 to 2"),
        ("mpl.0", "is no parameter's name"),
    ],
)
def test_what_is_not_there_is_refused(make_tiny_llama, words: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        named_mask(make_tiny_llama(), words)


def test_an_mlp_that_hangs_on_its_block_is_refused() -> None:
    config = OPTConfig(
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_size=16,
        ffn_dim=24,
        vocab_size=60,
        word_embed_proj_dim=16,
    )
    with pytest.raises(BadInput, match="not a module of its own"):
        mlp_mask(assay.wrap(OPTForCausalLM(config)), 0)


def test_one_vector_is_a_mask_of_all_that_requires_grad() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    net[0].bias.requires_grad_(False)
    vector = torch.zeros(10, dtype=torch.bool)
    vector[[1, 9]] = True  # of 6 weights, 3 weights and a bias
    mask = flat_mask(net, vector)
    assert {name: part.flatten().nonzero().flatten().tolist() for name, part in mask.items()} == {
        "0.weight": [1],
        "1.bias": [0],
    }
    made = target(net, squared_error, (torch.ones(5, 2), torch.ones(5, 1)), mask=vector)
    assert int(made.mask.sum()) == 2
    for wrong in (vector[:9], vector.float()):
        with pytest.raises(BadInput, match=r"expected bool of \(10,\), an entry for each parameter"):
            target(net, squared_error, (torch.ones(5, 2), torch.ones(5, 1)), mask=wrong)


@pytest.mark.parametrize("mask", [["0.weight"], True, {"0.weight"}])
def test_what_is_no_mask_is_refused(mask: object) -> None:
    with pytest.raises(
        BadInput, match=f"the mask is a {type(mask).__name__}: expected a mapping from parameter names"
    ):
        mask_of(nn.Sequential(nn.Linear(2, 3)), mask)


@pytest.mark.parametrize("part", [True, [True, False, True]])
def test_the_mask_of_a_parameter_is_a_tensor(part: object) -> None:
    with pytest.raises(
        BadInput, match=rf"mask of bias is {type(part).__name__}: expected a tensor of bool of \(3,\)"
    ):
        flattened({"bias": part}, {"bias": torch.zeros(3)})
