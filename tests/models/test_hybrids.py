"""Hybrids of attention and state-space or linear-attention blocks: what a block lacks is said, the rest is exact."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

import assay
from assay.errors import BadInput
from assay.models.model import Model, wrap
from assay.models.partial import SiteEdit, partial_forward, record

SAME = 1e-6  # float32 probabilities over 101 tokens


def bamba() -> PreTrainedModel:
    config = BambaConfig(
        vocab_size=101, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8,
        mamba_n_groups=1,
    )  # fmt: skip
    return BambaForCausalLM(config)


def qwen3_next() -> PreTrainedModel:
    config = Qwen3NextConfig(
        vocab_size=101, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=16, shared_expert_intermediate_size=16,
    )  # fmt: skip
    return Qwen3NextForCausalLM(config)


@pytest.fixture(scope="module", params=[bamba, qwen3_next], ids=["bamba", "qwen3_next"])
def model(request: pytest.FixtureRequest) -> Model:
    build: Callable[[], PreTrainedModel] = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return wrap(build())


def test_every_site_is_captured_without_changing_a_bit(model: Model) -> None:
    ids = torch.arange(5, 14)[None]
    captured = assay.capture(model, ids, model.sites())
    assert torch.equal(captured["logits"], model.module(ids).logits)
    assert torch.equal(captured["resid_post.0"], captured["resid_pre.1"])


def test_a_block_without_attention_says_so(model: Model) -> None:
    with pytest.raises(BadInput, match=r"z\.0"):
        assay.capture(model, torch.arange(5, 14)[None], ["z.0"])


def test_variants_are_full_forwards_and_say_so(model: Model) -> None:
    ids = torch.arange(5, 14)[None].repeat(2, 1)
    run, nothing = record(model, ids), torch.zeros(1, 1, model.d_model)
    assert "keep keys and values" in run.fallback
    got = partial_forward(
        run, [(SiteEdit("resid_post.0", nothing, (4,)),)], lambda logits: logits.softmax(-1)
    )
    edited = assay.intervene(model, ids, {"resid_post.0": assay.at(nothing, positions=4)})["logits"]
    assert float((got[0, :, 0] - edited[:, -1].softmax(-1)).abs().max()) <= SAME


def test_a_trace_of_a_hybrid_warns_that_it_is_slow(model: Model) -> None:
    result = assay.causal_trace(
        model, list(range(5, 14)), [2, 3], kinds=("state",), noise_samples=2, sigma=1.0
    )
    assert {check.code: check.verdict for check in result.checks}["T105"] == "warn"
