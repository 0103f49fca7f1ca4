"""The work every side is given, written once per case to a file that every environment can read."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from assay.models.model import Model

SAMPLES = 10
NOISE = 3.0


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


def write_work(model: Model, prompt: Prompt, path: Path, *, seed: int = 0) -> tuple[int, int]:
    """Write the tokens, the subject's span, the noise and the answer of one prompt.

    The noise is `NOISE` standard deviations of the subject's own embedding entries, normally distributed, one
    draw per sample; the answer is the token the model itself puts first.

    Returns:
        How many positions the prompt has, and how many layers the model has.
    """
    assert model.tokenizer is not None
    encoded = model.tokenizer(prompt.text, return_offsets_mapping=True)
    tokens = torch.tensor([encoded["input_ids"]])
    begin = prompt.text.index(prompt.subject)
    end = begin + len(prompt.subject)
    inside = [i for i, (low, high) in enumerate(encoded["offset_mapping"]) if low < end and begin < high]
    span = (inside[0], inside[-1] + 1)
    with torch.no_grad():
        answer = int(model.module(tokens).logits[0, -1].argmax())
        embedded = model.module.get_input_embeddings()(tokens[0, slice(*span)])
    sigma = NOISE * embedded.std().item()
    generator = torch.Generator().manual_seed(seed)
    noise = sigma * torch.randn((SAMPLES, *embedded.shape), generator=generator)
    told = {"prompt": prompt.text, "subject": prompt.subject, "span": span, "answer": answer, "sigma": sigma}
    save_file({"tokens": tokens, "noise": noise}, path, metadata={"work": json.dumps(told | {"seed": seed})})
    return tokens.shape[1], model.n_layers
