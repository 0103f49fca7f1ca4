"""TransformerLens on a GPT-2 without LayerNorm, from both of its forms: run in TransformerLens' environment.

    .venv-peers/transformer_lens/bin/python -m benchmarks.peers.norm_free FOLDER

The folder is what ``assay.norms.export`` wrote, beside ``expected.safetensors`` with the tokens and logits of the model
it was written from. Printed is the largest difference of a log-probability, for each way of building.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from assay.models.loading import load

WAYS = {"as it is": ("kept", False), "folded": ("kept", True), "identity": ("identity", False)}
"""What the norms are loaded as, and whether TransformerLens folds and centres the weights (compatibility mode)."""


def add_tokenizer(folder: Path) -> None:
    """Put a tokenizer into the folder, which a bridge insists on; tokens are given as ids all the same."""
    vocabulary = {"<s>": 0, **{f"<{index}>": index for index in range(1, 128)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>"
    )
    fast.save_pretrained(folder)


def main() -> None:
    """Print the differences as JSON."""
    folder = Path(sys.argv[1])
    add_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = load_file(folder / "expected.safetensors")
    expected = given["logits"].log_softmax(-1)
    found: dict[str, float | str] = {}
    for name, (norms, compatible) in WAYS.items():
        module = load(folder, norms=norms).module  # type: ignore[arg-type]
        bridge = TransformerBridge.boot_transformers(
            str(folder), hf_model=module, tokenizer=tokenizer, device="cpu"
        )
        for part in bridge.modules():  # otherwise a bridge norms anew whatever stands in a norm's place
            if isinstance(part, NormalizationBridge) and norms == "identity":
                part.use_native_layernorm_autograd = True
        if compatible:
            bridge.enable_compatibility_mode()
        with torch.no_grad():
            logits = bridge(given["tokens"])
        found[name] = float((logits.log_softmax(-1) - expected).abs().max())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
