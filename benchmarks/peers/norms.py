"""A GPT-2 with its norms folded, fixed, switched off and removed by Assay, beside itself.

Six blocks of GPT-2 small with random weights, since a trained one would have to be downloaded: time and rounding do not
depend on what they say. `norm_free` gives TransformerLens the same model, from both of the forms it is published in.
"""

import tempfile
from functools import partial

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from assay.models.loading import load
from assay.models.model import Model, wrap
from assay.models.norms.epsilon import export
from assay.models.norms.fixing import scale
from assay.models.norms.folding import fold
from benchmarks.peers.worker import Answer, Task, Turn, Work, serve


def gpt2() -> Model:
    """The model with its norms, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = GPT2LMHeadModel(GPT2Config(n_layer=6, initializer_range=0.1))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if ".ln_" in name:  # gains of one and biases of zero would be folded into nothing
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return wrap(module)


def prepare(work: Work) -> dict[str, Task]:
    """Make every form of the model."""
    original = gpt2()
    fixed = scale(original, [work.tokens[0].tolist()], special=())
    forms = {"original": original, "folded": fold(original), "fixed": fixed}
    with tempfile.TemporaryDirectory() as folder:
        export(fixed, folder)
        forms |= {"switched_off": load(folder), "identity": load(folder, norms="identity")}

    def forward(name: str, turn: Turn) -> Answer:
        logits = forms[name].module.to(work.device)(input_ids=work.tokens).logits[0, -1]
        kind = "log_probability_with_norms" if name in ("original", "folded") else "log_probability"
        return {kind: logits.log_softmax(-1)}

    return {"forward": partial(forward, "original"), **{name: partial(forward, name) for name in forms}}


if __name__ == "__main__":
    serve(prepare, ["torch", "transformers"])
