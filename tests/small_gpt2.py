"""A small GPT-2 trained in a minute on text that ships with Python: a model whose norms matter and can be removed."""

import pydoc_data.topics

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from assay.models.model import Model, wrap

LENGTH = 64


def python_text() -> tuple[Tensor, Tensor]:
    """The language reference as bytes, to train on and to hold out."""
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    ids = torch.tensor(list(text.encode("ascii", "ignore")), dtype=torch.long).clamp_max(127)
    return ids[:-40_000], ids[-40_000:]


def small_gpt2(steps: int, *, layers: int = 3, width: int = 64, seed: int = 0) -> Model:
    """Train it; the same at every call.

    Args:
        steps: of 16 windows of 64 bytes each; 0 for random weights.
        layers: blocks.
        width: of the residual stream.
        seed: of weights and windows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=128, n_embd=width, n_layer=layers, n_head=4, n_positions=LENGTH, bos_token_id=0,
            eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        module = GPT2LMHeadModel(config)
    text, _ = python_text()
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        starts = torch.randint(len(text) - LENGTH, (16,), generator=generator).tolist()
        ids = torch.stack([text[start : start + LENGTH + 1] for start in starts])
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - 0.9 * step / steps)
        optimizer.zero_grad()
        logits = module(input_ids=ids[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return wrap(module)
