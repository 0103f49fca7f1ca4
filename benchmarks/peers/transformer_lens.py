"""TransformerLens: its own cache, logit lens and patching sweep, used as its documentation has them."""

from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.patching import (
    generic_activation_patch,
    layer_pos_head_vector_patch_setter,
    layer_pos_patch_setter,
)
from transformer_lens.tools.analysis import logit_lens
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.peers.worker import Answer, Task, Turn, Work, serve


def prepare(work: Work) -> dict[str, Task]:
    """Boot a bridge around the Hugging Face model."""
    hugging_face = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).to(work.device)
    model = TransformerBridge.boot_transformers(
        work.model,
        hf_model=hugging_face,
        tokenizer=AutoTokenizer.from_pretrained(work.model),
        device=work.device,
    )
    model.eval()
    corrupted_tokens = work.tokens.expand(work.samples, -1)
    residual_names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]

    def corrupt(embedding: Tensor, hook: Any) -> Tensor:
        embedding[:, slice(*work.span)] += work.noise
        return embedding

    def probability(logits: Tensor) -> Tensor:
        return logits[:, -1].softmax(-1)[:, work.answer].mean()

    def forward(turn: Turn) -> Answer:
        return {"last_logits": model(work.tokens)[0, -1]}

    def capture(turn: Turn) -> Answer:
        _, cache = model.run_with_cache(work.tokens, names_filter=residual_names)
        return {"last_residual": cache[residual_names[-1]][0, -1]}

    def lens(turn: Turn) -> Answer:
        read = logit_lens(model, work.tokens, positions=None, top_k=5, return_type="probs").readout
        assert read.top_ids is not None
        return {"top_token": read.top_ids[:, 0], "top_probability": read.values[:, 0]}

    def trace(turn: Turn) -> Answer:
        _, clean = model.run_with_cache(work.tokens, names_filter=residual_names)
        with model.hooks(fwd_hooks=[("hook_embed", corrupt)]):
            restored = generic_activation_patch(
                model,
                corrupted_tokens,
                clean,
                probability,
                layer_pos_patch_setter,
                "resid_post",
                index_df=pd.DataFrame(turn.cells, columns=["layer", "pos"]),
            )
        return {"restored": restored}

    def head_patches(turn: Turn) -> Answer:
        _, clean = model.run_with_cache(work.tokens, names_filter=lambda name: name.endswith("attn.hook_z"))
        heads = range(model.cfg.n_heads)
        patched = generic_activation_patch(
            model,
            work.corrupted,
            clean,
            lambda logits: logits[0, -1].log_softmax(-1)[work.answer],
            layer_pos_head_vector_patch_setter,
            "z",
            index_df=pd.DataFrame(
                [(*cell, head) for cell in turn.cells for head in heads], columns=["layer", "pos", "head"]
            ),
        )
        return {"restored": patched.view(-1, len(heads)).mean(-1)}

    return {
        "forward": forward,
        "capture": capture,
        "lens": lens,
        "trace": trace,
        "head_patches": head_patches,
    }


if __name__ == "__main__":
    serve(prepare, ["transformer-lens", "transformers", "torch"])
