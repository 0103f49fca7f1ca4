"""Deletions and ablations on a data set: by Assay's verbs, and by one full forward each, measured alike.

The full forwards are the bare module's, with the block or component replaced by a hook, and the metrics written down
from whole distributions. The data sets are random tokens: what they say does not change the time. A cell of the
ablation's table is (layer, component), the heads first and the MLP last; the short prompt has as many positions as a
block of SmolLM2 has such components, so that the table is that of the case. The full forwards fill a part of it, Assay
the whole in every turn: what it does once for all components is then spread over as many as in a scan.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import assay
from benchmarks.peers.worker import Answer, Task, Turn, Work, serve

DELETION_INPUTS, DELETION_TOKENS = 16, 64
ABLATION_INPUTS, ABLATION_TOKENS = 8, 32


def prepare(work: Work) -> dict[str, Task]:
    """Load the model and draw the data sets."""
    model = assay.load(work.model, device=str(work.device))
    module: Any = model.module
    vocabulary, heads = model.parts.vocabulary, module.config.num_attention_heads
    generator = torch.Generator().manual_seed(0)
    deletion_ids, ablation_ids = (
        torch.randint(0, vocabulary, shape, generator=generator)
        for shape in ((DELETION_INPUTS, DELETION_TOKENS), (ABLATION_INPUTS, ABLATION_TOKENS))
    )

    def forward(turn: Turn) -> Answer:
        return {"last_logits": module(work.tokens).logits[0, -1]}

    def deletions(turn: Turn) -> Answer:
        result = assay.layer_surgery(model, deletion_ids.tolist(), operations=("delete",), baseline_inputs=0)
        return {"kl": torch.from_numpy(result.dataset["effect"].sel(metric="kl_from_clean").values)}

    def deletions_by_forwards(turn: Turn) -> Answer:
        clean = module(deletion_ids).logits.log_softmax(-1)
        kls = []
        for block in module.model.layers:
            with hooked(block, lambda inputs, output: inputs[0]):
                kls.append(metrics(clean, module(deletion_ids).logits, deletion_ids)[1])
        return {"kl": torch.stack(kls)}

    def thirty_forwards(turn: Turn) -> Answer:
        for _ in module.model.layers:
            module(deletion_ids)
        return {}

    def ablation(turn: Turn) -> Answer:
        result = assay.ablate(model, ablation_ids.tolist(), value="zero", baseline_inputs=0)
        kl = result.dataset["effect"].sel(metric="kl_from_clean")
        names = [f"head.{layer}.{i}" if i < heads else f"mlp.{layer}" for layer, i in turn.cells]
        return {"kl_of_component": torch.from_numpy(kl.sel(component=names).values)}

    def ablation_by_forwards(turn: Turn) -> Answer:
        clean = module(ablation_ids).logits.log_softmax(-1)
        width, kls = model.d_model // heads, []
        for layer, component in turn.cells:
            block = module.model.layers[layer]
            if component < heads:
                here = slice(component * width, (component + 1) * width)
                edited = silenced(block.self_attn.o_proj, here)
            else:
                edited = hooked(block.mlp, lambda inputs, output: torch.zeros_like(output))
            with edited:
                kls.append(metrics(clean, module(ablation_ids).logits, ablation_ids)[1])
        return {"kl_of_component": torch.stack(kls)}

    return {
        "forward": forward,
        "deletions": deletions,
        "deletions_by_forwards": deletions_by_forwards,
        "thirty_forwards": thirty_forwards,
        "ablation": ablation,
        "ablation_by_forwards": ablation_by_forwards,
    }


@contextmanager
def hooked(module: nn.Module, edit: Callable[[tuple[Tensor, ...], Tensor], Tensor]) -> Generator[None]:
    """Replace what a module gives, for a while."""
    handle = module.register_forward_hook(lambda _, inputs, output: edit(inputs, output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def silenced(module: nn.Module, here: slice) -> Generator[None]:
    """Set a part of what a module is given to zero, for a while."""

    def edit(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        changed = inputs[0].clone()
        changed[..., here] = 0
        return (changed,)

    handle = module.register_forward_pre_hook(edit)
    try:
        yield
    finally:
        handle.remove()


def metrics(clean: Tensor, logits: Tensor, ids: Tensor) -> Tensor:
    """Loss difference, KL from clean and top-1 agreement, from whole distributions."""
    edited = logits.log_softmax(-1)
    following = ids[:, 1:, None]
    loss = (clean[:, :-1].gather(-1, following) - edited[:, :-1].gather(-1, following)).mean()
    kl = (clean.exp() * (clean - edited)).sum(-1).mean()
    agreement = (clean.argmax(-1) == edited.argmax(-1)).float().mean()
    return torch.stack([loss, kl, agreement])


if __name__ == "__main__":
    serve(prepare, ["assay", "transformers", "torch"])
