"""nnsight: one trace for the capture, one per cell for the patching, used as its documentation has them."""

import nnsight
import torch
from nnsight import TransformersModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.peers.worker import Answer, Task, Turn, Work, serve


def prepare(work: Work) -> dict[str, Task]:
    """Wrap the Hugging Face model."""
    hugging_face = (
        AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).to(work.device).eval()
    )
    model = TransformersModel(hugging_face, tokenizer=AutoTokenizer.from_pretrained(work.model))
    layers = model.model.layers
    corrupted_tokens = work.tokens.expand(work.samples, -1)

    def residuals() -> list[torch.Tensor]:
        with model.trace(work.tokens):
            states = nnsight.save([])
            for layer in layers:
                states.append(layer.output)
        return states

    def forward(turn: Turn) -> Answer:
        with model.trace(work.tokens):
            logits = model.lm_head.output.save()
        return {"last_logits": logits[0, -1]}

    def capture(turn: Turn) -> Answer:
        return {"last_residual": residuals()[-1][0, -1]}

    def cell(layer: int, position: int, clean: torch.Tensor) -> float:
        with model.trace(corrupted_tokens):
            model.model.embed_tokens.output[:, slice(*work.span)] += work.noise
            layers[layer].output[:, position] = clean
            probability = model.lm_head.output[:, -1].softmax(-1)[:, work.answer].mean().save()
        return probability.item()

    def trace(turn: Turn) -> Answer:
        clean = residuals()
        return {
            "restored": [cell(layer, position, clean[layer][0, position]) for layer, position in turn.cells]
        }

    return {"forward": forward, "capture": capture, "trace": trace}


if __name__ == "__main__":
    serve(prepare, ["nnsight", "transformers", "torch"])
