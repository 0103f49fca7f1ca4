r"""Direct logit attribution: what each component writes straight into a logit, the final norm held fixed.

The last residual stream is a sum, :math:`x = \sum_c x_c`, of the embedding and of what attentions and MLPs write. With
the final norm's scale :math:`\sigma` frozen at the value it has, the logit of token :math:`v` is linear in it:

.. math:: \mathrm{logit}_v = \sum_c x_c \cdot g_v + \mathrm{const}, \qquad
          g_v = \frac{C\,(w \odot U_v)}{\sigma}

with the norm's weight :math:`w`, the unembedding's row :math:`U_v`, and :math:`C` the centring of a LayerNorm (the
identity for RMSNorm). The attributions :math:`x_c \cdot g` add up to the logit exactly; with a foil, to the logit
difference. A head's share is what its part of z writes through the output projection; a neuron's, its activation times
its output weights.

Frozen is not true: without :math:`x_c` the norm would have another scale. The true direct effect, the logit minus the
logit of :math:`x - x_c`, stands beside each attribution, of neurons beside those that are named. Sources: Elhage et
al. 2021, A Mathematical Framework for Transformer Circuits; nostalgebraist 2020; Wang et al., 2211.00593.

Cost: one forward a prompt, and one unembedding a component and named neuron.

Limits: only the direct path is seen; a component may matter through others (:func:`assay.ablate`, :func:`assay.patch`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.activations.checks.direct_path import direct_path_checks
from assay.activations.direct_path import DirectPath, direct_path
from assay.activations.effects import PARTS
from assay.activations.prompt_pairs import Prompts, prompts_of, single_tokens
from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.estimates.estimate import mean_interval
from assay.models.intervention import capture
from assay.models.model import Model, Tokens
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

PER_PROMPT = ("attribution", "direct_effect", "freezing_error")


@dataclass(frozen=True, eq=False)
class Shared:
    """What every unit starts from.

    Attributes:
        paths: of each prompt.
        neurons: the attribution of every neuron, (prompt, block, neuron); empty where they are not asked for.
        top: the neurons with the largest mean attribution, (block, rank); likewise.
    """

    paths: list[DirectPath]
    neurons: Tensor
    top: Tensor


@dataclass(frozen=True, kw_only=True)
class DirectLogitAttribution(Measurement):
    """What each component writes straight into a logit.

    Attributes:
        prompts: token ids of the prompts, of any lengths.
        answers: the token whose logit is attributed, one a prompt.
        foils: tokens whose logit is subtracted, one a prompt; empty for none.
        heads: attribute the heads of each attention too.
        top_neurons: neurons named in each block, by the size of their mean attribution; 0 for none.
        baseline_tokens: random tokens, or pairs of them, whose logits are attributed too; 0 for none.
        seed: of the random tokens, 0 or more.
    """

    name: ClassVar[str] = "direct_logit_attribution"
    revision: ClassVar[int] = 2
    prompts: tuple[Tokens, ...]
    answers: Tokens
    foils: Tokens = ()
    heads: bool = True
    top_neurons: int = 5
    baseline_tokens: int = 16
    seed: int = 0

    def prepare(self, model: Model) -> Shared:
        """Run every prompt, and find the strongest neurons of all of them."""
        several = self.top_neurons > 0
        paths = [direct_path(model, row, heads=self.heads, neurons=several) for row in self.prompts]
        if not several:
            return Shared(paths, torch.zeros(0), torch.zeros(0))
        found = [path.neurons(path.direction(*self._tokens(i))[0]) for i, path in enumerate(paths)]
        neurons = torch.stack(found)
        top = neurons.mean(0).abs().topk(min(self.top_neurons, neurons.shape[-1])).indices
        return Shared(paths, neurons, top)

    def plan(self, model: Model) -> Sequence[Unit]:
        """One unit a prompt.

        Raises:
            BadInput: no prompt, not one answer each, or a number below zero.
        """
        for what, ids in (("answer", self.answers), ("foil", self.foils or self.answers)):
            if len(ids) != len(self.prompts):
                raise BadInput(f"{len(ids)} values of {what} for {len(self.prompts)} prompts: give one each")
        if not self.prompts:
            raise BadInput("no prompt was given: the list is empty")
        if min(self.top_neurons, self.baseline_tokens, self.seed) < 0:
            raise BadInput("top_neurons, baseline_tokens and seed must be at least 0")
        return [Unit(f"prompt-{i:05d}", {"prompt": i}, cost=len(row)) for i, row in enumerate(self.prompts)]

    def measure(self, model: Model, unit: Unit, shared: Shared) -> Pieces:
        """Attribute the logit that follows one prompt."""
        index = unit.detail["prompt"]
        path, (answer, foil) = shared.paths[index], self._tokens(index)
        direction, constant = path.direction(answer, foil)
        attribution = path.parts.double() @ direction
        effect = path.removed(path.parts, answer, foil)
        pieces = {
            "attribution": attribution,
            "direct_effect": effect,
            "freezing_error": attribution - effect,
            "constant": constant,
            "target": path.target(path.logits, answer, foil),
        }
        if self.top_neurons:
            written = path.written(shared.top)
            pieces["top_neuron"] = shared.top
            pieces["top_neuron_attribution"] = shared.neurons[index].gather(-1, shared.top)
            effect = path.removed(written.flatten(0, 1), answer, foil)
            pieces["top_neuron_direct_effect"] = effect.unflatten(0, shared.top.shape)
        if self.baseline_tokens:
            pieces["random"] = self._random(model, path, index)
        return pieces

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Take means over prompts and their intervals."""
        units = list(pieces.values())
        few = {"allow_nan": True} if len(units) == 1 else {}
        variables: dict[str, Any] = {}

        def put(name: str, dims: tuple[str, ...], values: Tensor) -> None:
            for part, estimate in zip(PARTS, mean_interval(values.double().numpy()), strict=True):
                if dims or not (part and few):  # a single number without an interval says so by having none
                    variables[name + part] = (dims, estimate, few if part else {})

        for name in PER_PROMPT:
            put(name, ("component",), torch.stack([piece[name] for piece in units]))
        for name in ("target", "constant"):
            put(name, (), torch.stack([piece[name] for piece in units]))
        labels = self._labels(model)
        whole = np.array([kind != "head" for _, kind, _, _ in labels])
        sums = [float(piece["attribution"][whole].sum() + piece["constant"]) for piece in units]
        targets = [float(piece["target"]) for piece in units]
        variables["sum_error"] = ((), float(np.abs(np.subtract(sums, targets)).max()))
        if self.baseline_tokens:
            random = torch.stack([piece["random"] for piece in units]).mean(0)
            variables["baseline_attribution"] = (("component",), random.double().numpy())
        coordinates: dict[str, Any] = {
            "component": [name for name, _, _, _ in labels],
            "kind": ("component", [kind for _, kind, _, _ in labels]),
            "layer": ("component", [layer for _, _, layer, _ in labels]),
            "head": ("component", [head for _, _, _, head in labels]),
        }
        if self.top_neurons:
            variables["top_neuron"] = (("block", "rank"), units[0]["top_neuron"].numpy())
            for name in ("top_neuron_attribution", "top_neuron_direct_effect"):
                put(name, ("block", "rank"), torch.stack([piece[name] for piece in units]))
            coordinates["block"] = np.arange(model.n_layers)
        return xr.Dataset(variables, coordinates, self._attributes(model))

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """Attributions add up, freezing the norm does not mislead, random tokens get less."""
        return direct_path_checks(dataset)

    def memory(self, model: Model) -> int:
        """What every prompt's components write, the activations of one, and the logits a few rows at a time."""
        length = max(len(row) for row in self.prompts)
        parts = 2 + (model.parts.blocks[0].n_heads if self.heads else 0)
        kept = len(self.prompts) * (parts * model.n_layers * model.d_model + model.parts.vocabulary)
        return 4 * (kept + 8 * model.n_layers * length * model.d_model + 256 * model.parts.vocabulary)

    def _tokens(self, index: int) -> tuple[int, int | None]:
        """A prompt's answer and foil."""
        return self.answers[index], self.foils[index] if self.foils else None

    def _random(self, model: Model, path: DirectPath, index: int) -> Tensor:
        """Mean size of the attributions to random tokens, (component,)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        drawn = torch.randint(model.parts.vocabulary, (self.baseline_tokens, 2), generator=generator).tolist()
        directions = [path.direction(token, foil if self.foils else None)[0] for token, foil in drawn]
        return (path.parts.double() @ torch.stack(directions, -1)).abs().mean(-1)

    def _labels(self, model: Model) -> list[tuple[str, str, int, int]]:
        """Name, kind, layer and head of each component, -1 where it has none, in the order of the parts."""
        labels = [("embed", "embed", -1, -1)]
        for layer, block in enumerate(model.parts.blocks):
            labels += [(f"{kind}.{layer}", kind, layer, -1) for kind in ("attention", "mlp")]
            if self.heads:
                labels += [(f"head.{layer}.{h}", "head", layer, h) for h in range(block.n_heads)]
        return labels

    def _attributes(self, model: Model) -> dict[str, Any]:
        return {
            "model": model.source,
            "prompts": len(self.prompts),
            "answer": model.token_texts(self.answers[:1])[0],
            "foil": model.token_texts(self.foils[:1])[0] if self.foils else "",
            "target": "logit difference" if self.foils else "logit",
        }


def direct_logit_attribution(
    model: Model,
    prompts: Prompts,
    *,
    answer: str | int | Sequence[str] | Sequence[int] | None = None,
    foil: str | int | Sequence[str] | Sequence[int] | None = None,
    heads: bool = True,
    top_neurons: int = 5,
    baseline_tokens: int = 16,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> Result:
    """Find what each component writes straight into a logit or a logit difference.

    Args:
        model: a decoder from ``load`` or ``wrap``.
        prompts: a prompt, or several, as text or token ids.
        answer: the token whose logit is attributed, with its leading space; one for all prompts or one each; the
            model's own most probable by default.
        foil: a token whose logit is subtracted.
        heads: attribute the heads of each attention too.
        top_neurons: neurons named in each block; 0 for none.
        baseline_tokens: random tokens whose logits are attributed too; 0 for none.
        seed: of the random tokens.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``attribution[component]``, ``direct_effect`` and their difference
        ``freezing_error``, each with ``_stderr``, ``_low`` and ``_high`` over prompts; ``constant`` and ``target``,
        which the embedding, the attentions, the MLPs and the constant add up to (``sum_error``); the strongest neurons
        of each block, with ``top_neuron_attribution`` and ``top_neuron_direct_effect``; and ``baseline_attribution``,
        the mean size for random tokens.

    Raises:
        BadInput: an answer of several tokens, or a model whose logits are no linear map of its final norm, whose
            blocks do not add up, or that computes no such heads or neurons.
    """
    rows = prompts_of(model, prompts)
    answers = single_tokens(model, prompts, answer, "answer")
    if not answers:
        answers = tuple(
            int(capture(model, [list(row)], ["logits"])["logits"][0, -1].argmax()) for row in rows
        )
    measurement = DirectLogitAttribution(
        prompts=rows,
        answers=answers,
        foils=single_tokens(model, prompts, foil, "foil"),
        heads=heads,
        top_neurons=top_neurons,
        baseline_tokens=baseline_tokens,
        seed=seed,
    )
    return perform(measurement, model, **run)
