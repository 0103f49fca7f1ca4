r"""What a causal trace computes: runs recorded once, states restored, and the answer measured.

:class:`Restoration` holds the clean run and the corrupted runs of one prompt, and gives the metrics of either and of
any restoration. It knows nothing of units, intervals or datasets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assay.activations.divergence import kl_divergence, log_probabilities
from assay.activations.material import subjects
from assay.models.edits import Edit
from assay.models.model import Model, Tokens
from assay.models.partial import Recording, SiteEdit, Variant, partial_forward, record

Kind = Literal["state", "mlp", "attn", "state_mlp_severed", "state_attn_severed"]
KINDS: tuple[Kind, ...] = ("state", "mlp", "attn")
METRICS = ("probability", "log_probability", "logit_difference", "kl_from_clean")
WRITES = {
    "mlp": "mlp_out",
    "attn": "attn_out",
    "state_mlp_severed": "mlp_out",
    "state_attn_severed": "attn_out",
}


@dataclass(frozen=True, eq=False)
class Restoration:
    """The recorded runs of one prompt, and what restoring a state in the corrupted ones does to the answer.

    Attributes:
        clean: the clean run, one row.
        corrupted: the corrupted runs, one row a sample.
        length: tokens of the prompt; the answer's tokens but the last follow it in the runs.
        final: log-probabilities of the clean run where the answer is read, (answer token, vocabulary).
        answer: token ids of the answer.
        foil: the token the logit difference is taken against.
        window: how many blocks' MLPs or attentions are restored together.
    """

    clean: Recording
    corrupted: Recording
    length: int
    final: Tensor
    answer: Tokens
    foil: int
    window: int

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.clean.resid) - 1

    def of_run(self, run: Recording) -> Tensor:
        """The metrics of a recorded run itself.

        Args:
            run: the clean or the corrupted runs.

        Returns:
            (row, metric), in the order of ``METRICS``.
        """
        ends = run.resid[-1][:, self.length - 1 :]
        logits = run.readout(ends.flatten(0, 1)).unflatten(0, ends.shape[:2])
        return self.measure(logits[None])[0]

    def of_cells(self, kind: Kind, position: int, max_rows: int | None) -> Tensor:
        """The metrics with each layer restored at one position.

        Args:
            kind: what is restored.
            position: where.
            max_rows: most rows in one pass; ``None`` for what memory allows.

        Returns:
            (layer, sample, metric).
        """
        variants = [self._variant(kind, layer, position) for layer in range(self.layers)]
        distinct = {variant[0].site: variant for variant in variants}  # windows at the borders coincide
        values = partial_forward(
            self.corrupted,
            list(distinct.values()),
            self.measure,
            positions=range(self.length - 1, self.clean.ids.shape[1]),
            max_rows=max_rows,
        )
        place = {site: index for index, site in enumerate(distinct)}
        return values[[place[variant[0].site] for variant in variants]]

    def measure(self, logits: Tensor) -> Tensor:
        """The metrics of logits where the answer is read.

        Args:
            logits: (variant, row, answer token, vocabulary).

        Returns:
            (variant, row, metric): the answer's probability and log-probability (the sum over its tokens), the
            logit difference between its first token and the foil, and KL(clean || edited) in nats.
        """
        logs = log_probabilities(logits)
        answer = torch.tensor(self.answer, device=logits.device).expand(*logits.shape[:2], -1)[..., None]
        log_probability = logs.gather(-1, answer)[..., 0].sum(-1)
        difference = logits[..., 0, self.answer[0]].to(logs) - logits[..., 0, self.foil].to(logs)
        kl = kl_divergence(self.final, logs).sum(-1)
        return torch.stack([log_probability.exp(), log_probability, difference, kl], -1)

    def _variant(self, kind: Kind, layer: int, position: int) -> Variant:
        here = (position,)
        if kind in ("mlp", "attn"):
            start, stop = window_of(layer, self.layers, self.window)
            sites = [f"{WRITES[kind]}.{inside}" for inside in range(start, stop)]
            return tuple(SiteEdit(site, self.clean.sites[site][:, here], here) for site in sites)
        state = SiteEdit(f"resid_post.{layer}", self.clean.resid[layer + 1][:, here], here)
        if kind == "state":
            return (state,)
        later = [f"{WRITES[kind]}.{above}" for above in range(layer + 1, self.layers)]
        return (state, *(SiteEdit(site, self.corrupted.sites[site][:, here], here) for site in later))


def restoration(
    model: Model,
    rows: Sequence[Tokens],
    edits: Mapping[str, Edit],
    *,
    answer: Tokens | None,
    foil: int | None,
    kinds: Sequence[Kind],
    window: int,
) -> Restoration:
    """Record the clean and the corrupted runs.

    Args:
        model: the model.
        rows: the prompts' tokens: the clean one, then one a sample.
        edits: the noise, at ``embed``.
        answer: token ids of the answer; ``None`` for the clean run's most probable token. They are appended to the
            prompts, all but the last, so that each is read where it follows the ones before.
        foil: token the logit difference is taken against; ``None`` for the corrupted runs' most probable other one.
        kinds: what will be restored.
        window: how many blocks' MLPs or attentions are restored together.

    Returns:
        The recorded runs.
    """
    written = sorted({WRITES[kind] for kind in kinds if kind in WRITES})
    sites = [f"{site}.{layer}" for site in written for layer in range(model.n_layers)]
    ids = torch.tensor([(*row, *(answer or ())[:-1]) for row in rows])
    clean = record(model, ids[:1], sites=sites)  # alone, so that it is the bare model's run to the last bit
    corrupted = record(model, ids[1:], sites=sites, edits=edits)
    length = len(rows[0])
    final = log_probabilities(clean.readout(clean.resid[-1][0, length - 1 :]))
    answer = answer or (int(final[0].argmax()),)
    if foil is None:
        others = corrupted.readout(corrupted.resid[-1][:, length - 1]).float().softmax(-1).mean(0)
        others[answer[0]] = -1.0
        foil = int(others.argmax())
    return Restoration(clean, corrupted, length, final, answer, foil, window)


def window_of(layer: int, layers: int, window: int) -> tuple[int, int]:
    """The blocks restored together around a layer: centred on it, and moved inside at the borders.

    Args:
        layer: the layer.
        layers: number of blocks.
        window: number of blocks of a window.

    Returns:
        The first block, and one past the last.
    """
    start = min(max(layer - window // 2, 0), layers - window)
    return start, start + window


def embedding_scale(model: Model, texts: Sequence[str] | None = None) -> float:
    """Standard deviation over all embedding entries of all tokens of a list of subjects: the "3 sigma" rule's sigma.

    Args:
        model: the model.
        texts: the subjects; a list that comes with the project by default.

    Returns:
        The standard deviation. For a model without tokenizer, over the whole embedding.
    """
    with torch.no_grad():
        if model.tokenizer is None:
            every = torch.arange(model.parts.vocabulary, device=model.device)
        else:
            lists = model.tokenizer(list(texts or subjects()), add_special_tokens=False)["input_ids"]
            every = torch.tensor([token for ids in lists for token in ids], device=model.device)
        return float(model.parts.embed(every).float().std())
