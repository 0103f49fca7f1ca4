"""Tiny random decoder models, one per way a transformers family arranges a block.

Every parameter is drawn from a fixed seed and none is left at a trivial value: norm weights scatter around
their start, biases are not zero, soft caps and multipliers are not one, sliding windows are shorter than the
prompts. Code that ignores any of them therefore fails its test.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 101
CONTEXT = 64
WINDOW = 4
WEIGHT_SCALE = 0.2
SMALL_SCALE = 0.1
EXPERT_BIAS = "e_score_correction_bias"

SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
"""Settings every family shares."""

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
"""Settings of the families that follow LLaMA's names: grouped queries, an MLP that is not 4 x hidden wide."""

EVERY_HEAD = {name: size for name, size in LLAMA.items() if name != "num_key_value_heads"}
"""The same for the families in which each head has its own keys and values."""

GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 56, "n_positions": CONTEXT}

GPT2_NAMES: dict[str, Any] = {
    "blocks": "transformer.h",
    "norm": "transformer.ln_f",
    "attention": "attn",
    "o_proj": "c_proj",
    "pre_norms": ("ln_1", "ln_2"),
}
"""Fields of `Family` that the families with GPT-2's names share."""

ALTERNATING = ["sliding_attention", "full_attention"] * 2


@dataclass(frozen=True)
class Family:
    """How one tiny model is made, and what its blocks look like, written by hand from the modelling code.

    Attributes:
        kind: `model_type` of the transformers configuration.
        settings: arguments of the configuration beyond `SPECIAL`.
        positions: how the model knows where a token stands.
        parallel: attention and MLP both read the block's input.
        sliding: the window in tokens of the layers that have one, else None.
        moe: the MLP routes tokens to experts.
        blocks: path of the list of blocks.
        norm: path of the final norm; None where there is none.
        attention: attention module inside a block; the output of which is what `attn_out` is made from.
        o_proj: the projection from `z` to `attn_out`, inside the attention module.
        mlp: MLP module inside a block; None where the block holds its layers itself.
        down: the projection from `mlp_act` to `mlp_out`, inside the block; None where experts hide it.
        pre_norms: norms inside a block that read the residual stream before attention and before the MLP;
            None where the module reads it raw, or where both modules share the first.
        post_norms: norms inside a block through which what attention and MLP write goes before it is added.
        residual_scale: factor on both contributions before they are added.
        logit_scale: factor on the unembedding's result.
        soft_cap: bound c of c * tanh(logits / c) on the final logits.
        sinks: attention rows sum to less than one.
        clip: bound on the entries of queries, keys and values.
        d_head: width of one head's value.
        norm_after_add: each sum of stream and contribution is normalised before it is passed on.
        project_out: path of a projection between the last block and the unembedding.
    """

    kind: str
    settings: dict[str, Any]
    positions: Literal["rope", "learned", "alibi", "sinusoidal"] = "rope"
    parallel: bool = False
    sliding: int | None = None
    moe: bool = False
    blocks: str = "model.layers"
    norm: str | None = "model.norm"
    attention: str = "self_attn"
    o_proj: str = "o_proj"
    mlp: str | None = "mlp"
    down: str | None = "mlp.down_proj"
    pre_norms: tuple[str | None, str | None] = ("input_layernorm", "post_attention_layernorm")
    post_norms: tuple[str | None, str | None] = (None, None)
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    soft_cap: float | None = None
    sinks: bool = False
    clip: float | None = None
    d_head: int = 8
    norm_after_add: bool = False
    project_out: str | None = None

    @property
    def has_neurons(self) -> bool:
        """Whether one activation vector feeds one down projection."""
        return self.down is not None

    def build(self, attention: str | None = None) -> PreTrainedModel:
        """The tiny model, the same at every call; with the default attention kernel, or a given one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = AutoConfig.for_model(self.kind, **{**SPECIAL, **self.settings})
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
            scatter(model)
        return model


@torch.no_grad()
def scatter(model: PreTrainedModel) -> None:
    """Redraw every matrix and add noise to every vector, so that no parameter is zero or one."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=WEIGHT_SCALE)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=SMALL_SCALE)
    for name, buffer in model.named_buffers():
        if name.endswith(EXPERT_BIAS):
            buffer.normal_(std=SMALL_SCALE)
    model.tie_weights()


def llama_like(kind: str, settings: dict[str, Any] | None = None, **notes: Any) -> Family:
    """A family with LLaMA's names; `settings` on top of `LLAMA`, `notes` are fields of `Family`."""
    return Family(kind, {**LLAMA, **(settings or {})}, **notes)


def gpt2_like(kind: str, settings: dict[str, Any] | None = None, **notes: Any) -> Family:
    """A family with GPT-2's names; `settings` on top of `GPT2`, `notes` are fields of `Family`."""
    return Family(
        kind,
        {**GPT2, **(settings or {})},
        **{**GPT2_NAMES, **notes},
    )


def opt_like(settings: dict[str, Any], **notes: Any) -> Family:
    """An OPT model; its MLP layers sit in the block itself."""
    sizes = {"hidden_size": 32, "ffn_dim": 56, "num_hidden_layers": 3, "num_attention_heads": 4}
    return Family(
        "opt",
        {**sizes, "max_position_embeddings": CONTEXT, **settings},
        positions="learned",
        blocks="model.decoder.layers",
        o_proj="out_proj",
        mlp=None,
        down="fc2",
        **{"pre_norms": ("self_attn_layer_norm", "final_layer_norm"), **notes},
    )


def falcon_like(settings: dict[str, Any], **notes: Any) -> Family:
    """A Falcon model; which norms a block has depends on its settings."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_hidden_size": 56}
    return Family(
        "falcon",
        {**sizes, "max_position_embeddings": CONTEXT, "bias": True, **settings},
        blocks="transformer.h",
        norm="transformer.ln_f",
        attention="self_attention",
        o_proj="dense",
        down="mlp.dense_4h_to_h",
        **notes,
    )


def neox_like(parallel: bool) -> Family:
    """A GPT-NeoX model with a quarter of each head rotated, residuals in parallel or one after the other."""
    sizes = {**EVERY_HEAD, "use_parallel_residual": parallel, "hidden_act": "gelu"}
    return Family(
        "gpt_neox",
        {
            **sizes,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
        },
        parallel=parallel,
        blocks="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
        attention="attention",
        o_proj="dense",
        down="mlp.dense_4h_to_h",
    )


GPTJ_NAMES: dict[str, Any] = {
    "parallel": True,
    "o_proj": "out_proj",
    "down": "mlp.fc_out",
    "pre_norms": ("ln_1", None),
}
ONE_NORM = ("input_layernorm", None)
GEMMA_PRE_NORMS = ("input_layernorm", "pre_feedforward_layernorm")
POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")

FAMILIES: dict[str, Family] = {
    "gpt2": gpt2_like("gpt2", positions="learned", down="mlp.c_proj"),
    "gpt2-layer-scaled": gpt2_like(
        "gpt2", {"scale_attn_by_inverse_layer_idx": True}, positions="learned", down="mlp.c_proj"
    ),
    "gpt_bigcode": gpt2_like("gpt_bigcode", positions="learned", down="mlp.c_proj"),
    "gpt_bigcode-heads": gpt2_like(
        "gpt_bigcode", {"multi_query": False}, positions="learned", down="mlp.c_proj"
    ),
    "gpt_neo": Family(
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "intermediate_size": 56,
            "attention_types": [[["global", "local"], 2]],
            "window_size": WINDOW,
            "max_position_embeddings": CONTEXT,
        },
        positions="learned",
        sliding=WINDOW,
        blocks="transformer.h",
        norm="transformer.ln_f",
        attention="attn",
        o_proj="attention.out_proj",
        pre_norms=("ln_1", "ln_2"),
        down="mlp.c_proj",
    ),
    "gpt_neox": neox_like(parallel=True),
    "gpt_neox-sequential": neox_like(parallel=False),
    "gptj": gpt2_like("gptj", {"rotary_dim": 4}, **GPTJ_NAMES),
    "codegen": gpt2_like("codegen", {"rotary_dim": 4}, **GPTJ_NAMES),
    "opt": opt_like({}, norm="model.decoder.final_layer_norm"),
    "opt-post-norm": opt_like(
        {"do_layer_norm_before": False, "word_embed_proj_dim": 24},
        norm=None,
        pre_norms=(None, None),
        norm_after_add=True,
        project_out="model.decoder.project_out",
    ),
    "bloom": Family(
        "bloom",
        {"hidden_size": 32, "n_layer": 3, "n_head": 4},
        positions="alibi",
        blocks="transformer.h",
        norm="transformer.ln_f",
        attention="self_attention",
        o_proj="dense",
        down="mlp.dense_4h_to_h",
    ),
    "falcon": falcon_like({"multi_query": True}, parallel=True, pre_norms=ONE_NORM),
    "falcon-new": falcon_like(
        {"new_decoder_architecture": True, "num_kv_heads": 2}, parallel=True, pre_norms=("ln_attn", "ln_mlp")
    ),
    "falcon-alibi": falcon_like(
        {"alibi": True, "multi_query": False, "parallel_attn": False}, positions="alibi"
    ),
    "mpt": Family(
        "mpt",
        {"d_model": 32, "n_layers": 3, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": CONTEXT},
        positions="alibi",
        blocks="transformer.blocks",
        norm="transformer.norm_f",
        attention="attn",
        o_proj="out_proj",
        mlp="ffn",
        down="ffn.down_proj",
        pre_norms=("norm_1", "norm_2"),
    ),
    "llama": llama_like("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": llama_like("llama", {"tie_word_embeddings": True, "head_dim": 12}, d_head=12),
    "mistral": llama_like("mistral", {"sliding_window": WINDOW}, sliding=WINDOW),
    "mixtral": llama_like(
        "mixtral", {"num_local_experts": 4, "sliding_window": WINDOW}, sliding=WINDOW, moe=True, down=None
    ),
    "qwen2": llama_like("qwen2"),
    "qwen2_moe": llama_like(
        "qwen2_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
        moe=True,
        down=None,
    ),
    "qwen3": llama_like("qwen3", {"head_dim": 12}, d_head=12),
    "qwen3_moe": llama_like(
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 12},
        moe=True,
        down=None,
        d_head=12,
    ),
    "gemma": llama_like("gemma", {"head_dim": 12}, d_head=12),
    "gemma2": llama_like(
        "gemma2",
        {
            "num_hidden_layers": 4,
            "head_dim": 12,
            "query_pre_attn_scalar": 10,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 2.0,
        },
        sliding=WINDOW,
        soft_cap=3.0,
        pre_norms=GEMMA_PRE_NORMS,
        post_norms=POST_NORMS,
        d_head=12,
    ),
    "gemma3": llama_like(
        "gemma3_text",
        {
            "num_hidden_layers": 4,
            "head_dim": 12,
            "query_pre_attn_scalar": 10,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
        },
        sliding=WINDOW,
        pre_norms=GEMMA_PRE_NORMS,
        post_norms=POST_NORMS,
        d_head=12,
    ),
    "phi": llama_like(
        "phi",
        {"qk_layernorm": True, "hidden_act": "gelu_new"},
        parallel=True,
        pre_norms=ONE_NORM,
        norm="model.final_layernorm",
        o_proj="dense",
        down="mlp.fc2",
    ),
    "phi3": llama_like("phi3", {"sliding_window": WINDOW}, sliding=WINDOW),
    "olmo": llama_like("olmo", {"clip_qkv": 0.5}, clip=0.5),
    "olmo2": llama_like("olmo2", pre_norms=(None, None), post_norms=POST_NORMS),
    "olmo3": llama_like(
        "olmo3",
        {"num_hidden_layers": 4, "sliding_window": WINDOW, "layer_types": ALTERNATING},
        sliding=WINDOW,
        pre_norms=(None, None),
        post_norms=POST_NORMS,
    ),
    "olmoe": llama_like(
        "olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 0.5}, moe=True, down=None, clip=0.5
    ),
    "stablelm": llama_like("stablelm", {"use_qkv_bias": True, "qk_layernorm": True}),
    "stablelm-parallel": llama_like(
        "stablelm", {"use_parallel_residual": True}, parallel=True, pre_norms=ONE_NORM
    ),
    "starcoder2": llama_like("starcoder2", {"sliding_window": WINDOW}, sliding=WINDOW, down="mlp.c_proj"),
    "granite": llama_like(
        "granite",
        {
            "embedding_multiplier": 3.0,
            "logits_scaling": 0.5,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
        },
        residual_scale=0.3,
        logit_scale=2.0,
    ),
    "granitemoe": llama_like(
        "granitemoe",
        {
            "num_local_experts": 4,
            "embedding_multiplier": 3.0,
            "logits_scaling": 0.5,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
        },
        residual_scale=0.3,
        logit_scale=2.0,
        moe=True,
        mlp="block_sparse_moe",
        down=None,
    ),
    "cohere": llama_like(
        "cohere",
        {"logit_scale": 0.5, "use_qk_norm": True},
        parallel=True,
        pre_norms=ONE_NORM,
        logit_scale=0.5,
    ),
    "cohere2": llama_like(
        "cohere2",
        {
            "logit_scale": 0.5,
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
        },
        parallel=True,
        pre_norms=ONE_NORM,
        sliding=WINDOW,
        logit_scale=0.5,
    ),
    "deepseek_v2": llama_like(
        "deepseek_v2",
        {
            "num_key_value_heads": 4,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 12,
            "n_group": 2,
            "topk_group": 1,
            "n_routed_experts": 4,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "routed_scaling_factor": 1.5,
        },
        moe=True,
        down=None,
        d_head=6,
    ),
    "deepseek_v3": llama_like(
        "deepseek_v3",
        {
            "num_key_value_heads": 4,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 12,
            "n_group": 2,
            "topk_group": 1,
            "n_routed_experts": 4,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
        },
        moe=True,
        down=None,
        d_head=6,
    ),
    "smollm3": llama_like("smollm3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2}),
    "glm": llama_like("glm", {"head_dim": 12}, d_head=12),
    "glm4": llama_like(
        "glm4",
        {"head_dim": 12},
        post_norms=("post_self_attn_layernorm", "post_mlp_layernorm"),
        d_head=12,
    ),
    "nemotron": llama_like("nemotron"),
    "persimmon": Family(
        "persimmon",
        EVERY_HEAD,
        norm="model.final_layernorm",
        o_proj="dense",
        down="mlp.dense_4h_to_h",
    ),
    "biogpt": Family(
        "biogpt",
        EVERY_HEAD,
        positions="learned",
        blocks="biogpt.layers",
        norm="biogpt.layer_norm",
        o_proj="out_proj",
        mlp=None,
        down="fc2",
        pre_norms=("self_attn_layer_norm", "final_layer_norm"),
    ),
    "xglm": Family(
        "xglm",
        {
            "d_model": 32,
            "ffn_dim": 56,
            "num_layers": 3,
            "attention_heads": 4,
            "max_position_embeddings": CONTEXT,
        },
        positions="sinusoidal",
        norm="model.layer_norm",
        o_proj="out_proj",
        mlp=None,
        down="fc2",
        pre_norms=("self_attn_layer_norm", "final_layer_norm"),
    ),
    "gpt_oss": llama_like(
        "gpt_oss",
        {
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": CONTEXT // 4,
            },
        },
        sliding=WINDOW,
        moe=True,
        down=None,
        sinks=True,
    ),
    "ernie4_5": llama_like("ernie4_5", {"head_dim": 12, "use_bias": True}, d_head=12),
    "exaone4": llama_like(
        "exaone4",
        {
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "sliding_window_pattern": 2,
            "layer_types": ALTERNATING,
        },
        sliding=WINDOW,
        pre_norms=(None, None),
        post_norms=POST_NORMS,
    ),
    "helium": llama_like("helium", {"head_dim": 8}),
    "apertus": llama_like(
        "apertus",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": CONTEXT // 4,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }
        },
        pre_norms=("attention_layernorm", "feedforward_layernorm"),
    ),
    "arcee": llama_like("arcee", {"hidden_act": "relu2"}),
    "seed_oss": llama_like("seed_oss", {"head_dim": 12}, d_head=12),
    "dbrx": Family(
        "dbrx",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 3,
            "max_seq_len": CONTEXT,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 1e4},
            "ffn_config": {
                "hidden_size": 32,
                "ffn_hidden_size": 24,
                "moe_num_experts": 4,
                "moe_top_k": 2,
            },
        },
        moe=True,
        blocks="transformer.blocks",
        norm="transformer.norm_f",
        attention="norm_attn_norm.attn",
        o_proj="out_proj",
        mlp="ffn",
        down=None,
        pre_norms=("norm_attn_norm.norm_1", "norm_attn_norm.norm_2"),
        clip=0.5,
    ),
}
