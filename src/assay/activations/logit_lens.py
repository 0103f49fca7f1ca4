r"""Logit lens: what each layer would say if the model stopped there.

.. math:: p_l(\cdot \mid x_{\le t}) = \mathrm{softmax}\bigl(\mathrm{readout}(h_{l,t})\bigr)

where :math:`h_{l,t}` is the residual stream after l blocks at position t, and *readout* is everything the model
itself does after its last block: final norm, unembedding, soft caps, scales. Source: nostalgebraist, "interpreting
GPT: the logit lens", 2020. A lens on what attention or the MLP *wrote* (``stream="attn_out"``, ``"mlp_out"``) reads
that vector alone.

Cost: one forward pass and one unembedding of every row (layer x position). The logits of a few positions at a time
are reduced to what is kept, so (layer x position x vocabulary) is never held.

Limits: early layers need not speak the unembedding's language; a lens says what can be read out linearly, not what
the model uses. The baseline reads the same states through a random rotation, which keeps their norms and destroys
what they say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.models.blocks import Blocks
from assay.models.intervention import capture
from assay.models.model import Model, Tokens
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

POSITIONS_A_UNIT = 16
ROWS = {"cpu": 128, "cuda": 2048}
"""Rows whose logits are held at once: on a processor they and their probabilities stay near the caches."""
BLOCK = 64
"""Entries of the vocabulary whose maximum is taken first, when looking for the top ones."""

Stream = Literal["resid", "attn_out", "mlp_out"]


class Shared(NamedTuple):
    """What every unit reads.

    Attributes:
        blocks: the decoder's blocks, for the readout.
        states: the vectors the lens reads, (layer, position, d_model).
        final: the residual stream after the last block, (position, d_model).
        model_log_probability: the model's own log-probability of each next token, (position - 1,).
    """

    blocks: Blocks
    states: Tensor
    final: Tensor
    model_log_probability: Tensor


@dataclass(frozen=True, kw_only=True)
class LogitLens(Measurement):
    """What each layer would say if the model stopped there.

    Attributes:
        tokens: token ids of the text.
        top_k: how many of the most probable tokens are kept.
        stream: what is read: the residual stream before the first block and after each, or what attention or the
            MLP of each block writes.
        baseline_rows: how many (layer, position) rows are also read through a random rotation.
        seed: of the rotation and of the choice of rows.
    """

    name: ClassVar[str] = "logit_lens"
    tokens: Tokens
    top_k: int = 5
    stream: Stream = "resid"
    baseline_rows: int = 64
    seed: int = 0

    def _sites(self, model: Model) -> list[str]:
        layers = range(model.n_layers)
        if self.stream != "resid":
            return [f"{self.stream}.{layer}" for layer in layers]
        return ["resid_pre.0", *(f"resid_post.{layer}" for layer in layers)]

    def prepare(self, model: Model) -> Shared:
        """One forward pass: the states to read."""
        sites, last = self._sites(model), f"resid_post.{model.n_layers - 1}"
        got = capture(model, self.tokens, [*dict.fromkeys([*sites, last]), "logits"])
        logits = got["logits"][0, :-1].float()
        target = torch.tensor(self.tokens[1:], device=logits.device)
        own = logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1)
        return Shared(Blocks(model), torch.stack([got[site][0] for site in sites]), got[last][0], own)

    def plan(self, model: Model) -> Sequence[Unit]:
        """Blocks of positions, and the rotated baseline.

        Raises:
            BadInput: ``top_k`` or ``baseline_rows`` out of range.
        """
        vocabulary = model.parts.vocabulary
        if not 1 <= self.top_k <= vocabulary:
            raise BadInput(f"top_k={self.top_k}: keep between 1 and the {vocabulary} tokens of the vocabulary")
        if self.baseline_rows < 1:
            raise BadInput(f"baseline_rows={self.baseline_rows}: the baseline needs at least one row")
        layers = len(self._sites(model))
        starts = range(0, len(self.tokens), POSITIONS_A_UNIT)
        units = [
            Unit(f"positions-{start:05d}", {"start": start, "stop": stop}, cost=layers * (stop - start))
            for start in starts
            for stop in [min(start + POSITIONS_A_UNIT, len(self.tokens))]
        ]
        return [*units, Unit("rotation", {}, cost=self.baseline_rows)]

    def measure(self, model: Model, unit: Unit, shared: Shared) -> Pieces:
        """Read out the rows of some positions, or the rotated rows."""
        with torch.no_grad():
            if unit.name == "rotation":
                return self._rotated(shared)
            layers, at_once = len(shared.states), ROWS.get(model.device.type, ROWS["cpu"])
            step = max(1, at_once // (layers + 1))
            start, stop = unit.detail["start"], unit.detail["stop"]
            parts = [self._positions(shared, begin, min(begin + step, stop)) for begin in range(start, stop, step)]
        extra = {"model_log_probability": shared.model_log_probability[start:stop]}
        return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]} | extra

    def _positions(self, shared: Shared, start: int, stop: int) -> Pieces:
        states = shared.states[:, start:stop]
        layers, positions, width = states.shape
        rows = states.reshape(-1, width)
        if self.stream != "resid":
            rows = torch.cat([rows, shared.final[start:stop]])
        logits = shared.blocks.readout(rows).float()
        targets = torch.tensor((*self.tokens, 0)[start + 1 : stop + 1], device=rows.device)
        kept = layers * positions
        statistics = read_rows(logits[:kept], logits[-positions:], targets.repeat(layers), self.top_k)
        return {name: value.view(layers, positions, *value.shape[1:]) for name, value in statistics.items()}

    def _rotated(self, shared: Shared) -> Pieces:
        layers, positions, width = shared.states.shape
        generator = torch.Generator().manual_seed(self.seed)
        rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
        with_target = layers * max(positions - 1, 1)
        chosen = torch.randperm(with_target, generator=generator)[: self.baseline_rows]
        layer, position = chosen // max(positions - 1, 1), chosen % max(positions - 1, 1)
        rows = shared.states[layer, position] @ rotation.to(shared.states)
        targets = torch.tensor((*self.tokens, 0), device=rows.device)[position + 1]
        final = shared.blocks.readout(shared.final[position]).float()
        statistics = read_rows(shared.blocks.readout(rows).float(), final, targets, 1, paired=True)
        agrees = statistics["top_token"][:, 0] == final.argmax(-1)
        return {**statistics, "layer": layer, "position": position, "agrees": agrees}

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Label what was read."""
        parts = [piece for name, piece in pieces.items() if name != "rotation"]
        own = torch.cat([part["model_log_probability"] for part in parts])
        lens = {name: torch.cat([part[name] for part in parts], 1) for name in parts[0] if name != "model_log_probability"}
        texts = model.token_texts(self.tokens)
        has_next = torch.arange(len(self.tokens)) < len(self.tokens) - 1
        ids = lens["top_token"]
        names = dict(zip((unique := ids.unique().tolist()), model.token_texts(unique), strict=True))
        table, cell = ("layer", "position", "rank"), ("layer", "position")
        variables: dict[str, Any] = {
            "top_token": (table, ids.numpy(), {"long_name": "most probable tokens"}),
            "top_token_text": (table, np.vectorize(names.__getitem__, otypes=[object])(ids.numpy()).astype(str)),
            "top_probability": (table, lens["top_probability"].numpy(), {"units": "1"}),
            "entropy": (cell, lens["entropy"].numpy(), {"units": "nats"}),
            "kl_to_final": (cell, lens["kl_to_final"].numpy(), {"units": "nats", "long_name": "KL(final || layer)"}),
            "target_rank": (cell, torch.where(has_next, lens["target_rank"], -1).numpy()),
            "target_log_probability": (
                cell,
                torch.where(has_next, lens["target_log_probability"], torch.nan).numpy(),
                {"units": "nats", "allow_nan": True},
            ),
            "model_log_probability": (("transition",), own.numpy(), {"units": "nats"}),
            **self._baseline(pieces["rotation"]),
        }
        sites = self._sites(model)
        first = 0 if self.stream == "resid" else 1
        coords = {
            "layer": np.arange(first, first + len(sites)) if first == 0 else np.arange(len(sites)),
            "site": ("layer", sites),
            "position": np.arange(len(texts)),
            "token": ("position", texts),
            "next_token": ("position", [*texts[1:], ""]),
            "rank": np.arange(self.top_k),
        }
        return xr.Dataset(variables, coords, {"model": model.source, "stream": self.stream})

    def _baseline(self, rotated: Pieces) -> dict[str, Any]:
        row = ("baseline_row",)
        kept = ("entropy", "kl_to_final", "target_rank", "target_log_probability")
        return {f"baseline_{name}": (row, rotated[name].numpy()) for name in kept} | {
            "baseline_agrees": (row, rotated["agrees"].numpy(), {"long_name": "same top token as the model"}),
            "baseline_layer": (row, rotated["layer"].numpy()),
            "baseline_position": (row, rotated["position"].numpy()),
        }

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """The last layer is the model itself; the rotated lens finds nothing."""
        return [*([_last_layer(dataset)] if self.stream == "resid" else []), _rotation(dataset)]

    def memory(self, model: Model) -> int:
        """Logits and probabilities of the rows held at once, and the captured states."""
        rows = ROWS.get(model.device.type, ROWS["cpu"])
        states = len(self._sites(model)) * len(self.tokens) * model.d_model
        return 4 * (3 * rows * model.parts.vocabulary + 2 * states + len(self.tokens) * model.parts.vocabulary)


def logit_lens(
    model: Model,
    text: str | Sequence[int] | Tensor,
    *,
    top_k: int = 5,
    stream: Stream = "resid",
    baseline_rows: int = 64,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> Result:
    """Read out every layer at every position through the model's own final norm and unembedding.

    Args:
        model: a decoder from ``load`` or ``wrap``.
        text: a text, or token ids.
        top_k: how many of the most probable tokens are kept.
        stream: ``"resid"``, or ``"attn_out"`` / ``"mlp_out"`` for what one module wrote.
        baseline_rows: rows also read through a random rotation.
        seed: of the rotation.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``top_token``, ``top_token_text`` and ``top_probability`` (layer, position,
        rank); ``entropy``, ``kl_to_final`` (nats), ``target_rank`` (0 is the top; -1 where there is no next token)
        and ``target_log_probability`` (layer, position); and the same through a random rotation as ``baseline_*``.
        Layer l is the residual stream after l blocks, layer 0 what enters the first.

    Raises:
        BadInput: an empty or too long text, or a setting out of range.
    """
    measurement = LogitLens(
        tokens=model.tokens(text), top_k=top_k, stream=stream, baseline_rows=baseline_rows, seed=seed
    )
    return perform(measurement, model, **run)


def read_rows(logits: Tensor, final: Tensor, targets: Tensor, top_k: int, *, paired: bool = False) -> Pieces:
    r"""Statistics of rows of logits, each in as few passes over memory as it can be had.

    With :math:`p` the softmax of a row and :math:`q` that of the final layer at its position: entropy
    :math:`\log Z - \sum p z`, and KL(final || layer) :math:`= \sum q \log q - \sum q z + \log Z`.

    Args:
        logits: (row, vocabulary), rows in the order (layer, position).
        final: the final layer's logits, (position, vocabulary), or (row, vocabulary) when ``paired``.
        targets: each row's true next token, (row,).
        top_k: how many top tokens to keep.
        paired: each row has its own final row.

    Returns:
        ``top_token`` and ``top_probability`` (row, rank), ``entropy``, ``kl_to_final``, ``target_rank``,
        ``target_log_probability`` (row,).
    """
    top, token = _top(logits, top_k)
    scratch = torch.softmax(logits, -1)
    normaliser = top[:, 0] - scratch.gather(1, token[:, :1])[:, 0].log()
    entropy = normaliser - _dot(scratch, logits)
    target = logits.gather(1, targets[:, None])
    rank = torch.gt(logits, target, out=scratch).sum(-1)  # counted in float32, exact below 2**24
    final_log_probability = torch.log_softmax(final, -1)
    final_probability = final_log_probability.exp()
    negative_entropy = _dot(final_probability, final_log_probability)
    if paired:
        cross = _dot(final_probability, logits)
    else:
        negative_entropy = negative_entropy.repeat(len(logits) // len(final))
        by_position = logits.view(-1, *final.shape).unbind(1)
        cross = torch.stack([z @ q for z, q in zip(by_position, final_probability, strict=True)], 1).flatten()
    return {
        "top_token": token,
        "top_probability": (top - normaliser[:, None]).exp(),
        "entropy": entropy,
        "kl_to_final": (negative_entropy - cross + normaliser).clamp_min(0),
        "target_rank": rank.long(),
        "target_log_probability": target[:, 0] - normaliser,
    }


def _top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row: they lie in the k blocks whose maxima are largest, so only those are sorted."""
    rows, vocabulary = logits.shape
    if vocabulary % BLOCK or k * BLOCK > vocabulary:
        values, places = logits.topk(k, -1)
        return values, places
    blocks = logits.view(rows, -1, BLOCK)
    chosen = blocks.amax(-1).topk(k, -1).indices
    candidates = blocks.gather(1, chosen[..., None].expand(-1, -1, BLOCK)).flatten(1)
    values, places = candidates.topk(k, -1)
    return values, chosen.gather(1, places // BLOCK) * BLOCK + places % BLOCK


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)


def _last_layer(dataset: xr.Dataset) -> Check:
    lens = dataset["target_log_probability"].to_numpy()[-1, :-1]
    error = float(np.abs(lens - dataset["model_log_probability"].to_numpy()).max(initial=0.0))
    message = f"The lens at the last layer differs from the model's own log-probabilities by at most {error:.1e} nats."
    if error <= 1e-3:  # float32 sums over a vocabulary; half precision is judged by the same figure and warned of
        return Check("L101", "last layer is not the model", "pass", error, message)
    remedy = "Load the model in float32; if it stays, the readout of this architecture is not its own."
    return Check("L101", "last layer is not the model", "warn" if error < 0.1 else "fail", error, message, remedy)  # noqa: PLR2004


def _rotation(dataset: xr.Dataset) -> Check:
    agreement = float(dataset["baseline_agrees"].mean())
    count = dataset.sizes["baseline_row"]
    message = f"Through a random rotation {agreement:.1%} of {count} rows name the model's top token."
    if agreement <= max(0.05, 1 / count):
        return Check("L102", "a random rotation reads the answer", "pass", agreement, message)
    remedy = "The unembedding favours few tokens whatever it is given; compare the lens with the baseline rows, not with zero."
    return Check("L102", "a random rotation reads the answer", "warn", agreement, message, remedy)
