"""The work every side is given, written once per case to a file that every environment can read."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from assay.activations.causal_trace import CausalTrace, embedding_scale
from assay.activations.subject import subject_positions
from assay.models.model import Model

SAMPLES = 10
SEED = 0


@dataclass(frozen=True)
class Prompt:
    """A text and the part of it whose embeddings a trace corrupts."""

    text: str
    subject: str


SHORT = Prompt("The Eiffel Tower is located in the city of", "Eiffel Tower")
# 60 tokens of SmolLM2, of which the subject is 45 to 47.
LONG = Prompt(
    "Of all the buildings that were put up for the great fairs of the nineteenth century, only a few are "
    "still standing, and most people who were asked today could name just one of them. Even a small child "
    "knows that the Eiffel Tower, once the main gate, is located in the city of",
    "Eiffel Tower",
)
# 24 tokens of SmolLM2; the second prompt of the pair has another word in the subject's place.
PAIR = Prompt(
    "Everybody who goes to France wants to see the Eiffel Tower, which is located in the middle of the city of",
    "Eiffel Tower",
)


def write_work(model: Model, prompt: Prompt, path: Path) -> tuple[int, int]:
    """Write the tokens, the subject's span, the noise and the answer of one prompt.

    The noise is what Assay's causal trace draws by default; the answer is the token the model puts first.

    Returns:
        How many positions the prompt has, and how many layers the model has.
    """
    tokens = torch.tensor([model.tokens(prompt.text)])
    positions = subject_positions(model, prompt.text, prompt.subject)
    span = (positions[0], positions[-1] + 1)
    with torch.no_grad():
        answer = int(model.module(tokens).logits[0, -1].argmax())
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(SAMPLES, len(positions), model.parts.embed_width, generator=generator)
    noise *= CausalTrace.noise * embedding_scale(model)
    told = {"prompt": prompt.text, "subject": prompt.subject, "span": span, "answer": answer, "seed": SEED}
    save_file({"tokens": tokens, "noise": noise}, path, metadata={"work": json.dumps(told)})
    return tokens.shape[1], model.n_layers
