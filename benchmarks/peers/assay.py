"""Assay, by its public verbs; and, in the same process, the bare module it wraps."""

import torch
from torch.nn.functional import linear

import assay
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

    return {
        "forward": forward,
        "forward_and_unembed": forward_and_unembed,
        "capture": capture,
        "lens": lens,
        "trace": trace,
    }


if __name__ == "__main__":
    serve(prepare, ["assay", "transformers", "torch"])
