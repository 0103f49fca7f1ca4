"""TransformerLens on the GPT-2 without LayerNorm of `benchmarks.peers.norms`, built from both published forms."""

import tempfile
from functools import partial

from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge
from transformers import AutoTokenizer

from assay.models.loading import load
from assay.models.norms.epsilon import export
from assay.models.norms.fixing import scale
from benchmarks.peers.norms import gpt2
from benchmarks.peers.worker import Answer, Task, Turn, Work, serve


def boot(work: Work, folder: str, form: str) -> TransformerBridge:
    """A bridge around one form: as it is (`switched_off`), with TransformerLens' own folding of it, as the identity."""
    module = load(folder, norms="identity" if form == "identity" else "kept", device=work.device).module
    bridge = TransformerBridge.boot_transformers(
        folder, hf_model=module, tokenizer=AutoTokenizer.from_pretrained(work.model), device=work.device
    )
    for part in bridge.modules():  # otherwise a bridge norms anew whatever stands in a norm's place
        if isinstance(part, NormalizationBridge) and form == "identity":
            part.use_native_layernorm_autograd = True
    if form == "folded":
        bridge.enable_compatibility_mode()
    return bridge


def prepare(work: Work) -> dict[str, Task]:
    """Boot a bridge around each form."""
    with tempfile.TemporaryDirectory() as folder:
        export(scale(gpt2(), [work.tokens[0].tolist()], special=()), folder)
        bridges = {form: boot(work, folder, form) for form in ("switched_off", "folded", "identity")}

    def forward(form: str, turn: Turn) -> Answer:
        return {"log_probability": bridges[form](work.tokens)[0, -1].log_softmax(-1)}

    tasks = {form: partial(forward, form) for form in bridges}
    return {**tasks, "forward": tasks["switched_off"]}


if __name__ == "__main__":
    serve(prepare, ["torch", "transformer-lens"])
