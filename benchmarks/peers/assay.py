"""Assay, by its public verbs; and, in the same process, the bare module it wraps."""

import torch
from torch.nn.functional import linear

import assay
from assay.activations.circuits.node_scores import attribute, contrast
from assay.activations.prompt_pairs import Gauge
from benchmarks.peers.worker import Answer, Task, Turn, Work, serve

UNEMBED_ROWS = 256


def prepare(work: Work) -> dict[str, Task]:
    """Load the model."""
    model = assay.load(work.model, device=str(work.device))
    residual_sites = [f"resid_post.{layer}" for layer in range(model.n_layers)]
    rows = torch.randn(
        ((model.n_layers + 1) * work.tokens.shape[1], model.d_model),
        generator=torch.Generator().manual_seed(0),
    ).to(work.device)
    unembedding = model.module.get_output_embeddings().weight

    def forward(turn: Turn) -> Answer:
        return {"last_logits": model.module(work.tokens).logits[0, -1]}

    def forward_and_unembed(turn: Turn) -> Answer:
        logits = model.module(work.tokens).logits
        for chunk in rows.split(UNEMBED_ROWS):
            linear(chunk, unembedding)
        return {"last_logits": logits[0, -1]}

    def capture(turn: Turn) -> Answer:
        return {"last_residual": assay.capture(model, work.tokens, residual_sites)[residual_sites[-1]][0, -1]}

    def lens(turn: Turn) -> Answer:
        dataset = assay.logit_lens(model, work.tokens[0], top_k=5).dataset
        return {
            "top_token": torch.from_numpy(dataset.top_token.values),
            "top_probability": torch.from_numpy(dataset.top_probability.values),
        }

    def trace(turn: Turn) -> Answer:
        dataset = assay.causal_trace(
            model,
            work.prompt,
            work.subject,
            kinds=("state",),
            noise_samples=work.samples,
            seed=work.seed,
            baseline_samples=0,  # the peers trace no untrained twin
        ).dataset
        restored = dataset.p_restored.sel(kind="state").values
        return {"restored": [float(restored[layer, position]) for layer, position in turn.cells]}

    def head_patches(turn: Turn) -> Answer:
        dataset = assay.patch(
            model,
            work.tokens[0].tolist(),
            work.corrupted[0].tolist(),
            answer=work.answer,
            site="z",
            by_head=True,
            metrics=("log_probability",),
            baseline_pairs=0,  # the peer patches from no random prompt
        ).dataset
        patched = dataset.metric_patched.sel(metric="log_probability").mean("head").values
        return {"restored": [float(patched[layer, position]) for layer, position in turn.cells]}

    def attribution(turn: Turn) -> Answer:
        names = ("resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "mlp_act")
        first = contrast(
            model,
            (tuple(work.tokens[0].tolist()), tuple(work.corrupted[0].tolist())),
            names,
            direction="denoise",
            gauge=lambda final: Gauge(("log_probability",), work.answer, -1, final),
        )
        return {"largest": attribute(first, "atp").nodes["z"].abs().max()}

    return {
        "head_patches": head_patches,
        "attribution": attribution,
        "forward": forward,
        "forward_and_unembed": forward_and_unembed,
        "capture": capture,
        "lens": lens,
        "trace": trace,
    }


if __name__ == "__main__":
    serve(prepare, ["assay", "transformers", "torch"])
