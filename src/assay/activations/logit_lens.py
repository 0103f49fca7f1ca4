r"""Logit lens: what each layer would say if the model stopped there.

.. math:: p_l(\cdot \mid x_{\le t}) = \mathrm{softmax}\bigl(\mathrm{readout}(h_{l,t})\bigr)

where :math:`h_{l,t}` is the residual stream after l blocks at position t, and *readout* is everything the
model itself does after its last block: final norm, unembedding, soft caps, scales. Source: nostalgebraist,
"interpreting GPT: the logit lens", 2020. A lens on what attention or the MLP *wrote* (``stream="attn_out"``,
``"mlp_out"``) reads that vector alone.

Cost: one forward pass and one unembedding of every row (layer x position). The logits of a few positions at a
time are reduced to what is kept, so (layer x position x vocabulary) is never held.

Limits: early layers need not speak the unembedding's language; a lens says what can be read out linearly, not
what the model uses. The baseline reads the same states through a random rotation, which keeps their norms and
destroys what they say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Unpack

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assay.activations.logit_rows import read_rows
from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.models.blocks import Blocks
from assay.models.intervention import capture
from assay.models.model import Model, Tokens
from assay.models.unembedding import Candidates, Kept, candidates, kept, unembedding_by
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

POSITIONS_A_UNIT = 20
LOGIT_BYTES = {"cpu": 2**27, "cuda": 2**28}
"""Bytes of the logits held at once: enough rows for a fast matrix product, a fraction of the weights."""
LENS = ("top_token", "top_probability", "entropy", "kl_to_final", "target_rank", "target_log_probability")

Stream = Literal["resid", "attn_out", "mlp_out"]


class Shared(NamedTuple):
    """What every unit reads.

    Attributes:
        blocks: the decoder's blocks, for the readout.
        states: the vectors the lens reads, (layer, position, d_model).
        final: the residual stream after the last block, (position, d_model).
        model_log_probability: the model's own log-probability of each next token, (position - 1,).
        rotated: layer and position of the states that are also read through a random rotation, (row, 2).
        turned: these states rotated, (row, d_model).
        unembedding: the way to read through; ``None`` for the model's own.
    """

    blocks: Blocks
    states: Tensor
    final: Tensor
    model_log_probability: Tensor
    rotated: Tensor
    turned: Tensor
    unembedding: Kept | Candidates | None


@dataclass(frozen=True, kw_only=True)
class LogitLens(Measurement):
    """What each layer would say if the model stopped there.

    Attributes:
        tokens: token ids of the text.
        top_k: how many of the most probable tokens are kept.
        stream: what is read: the residual stream before the first block and after each, or what attention or
            the MLP of each block writes.
        baseline_rows: how many (layer, position) rows are also read through a random rotation.
        candidates: unembed in bfloat16, and rescore this many largest logits of each row in float32; ``None`` for
            float32 throughout.
        seed: of the rotation and of the choice of rows.
    """

    name: ClassVar[str] = "logit_lens"
    tokens: Tokens
    top_k: int = 5
    stream: Stream = "resid"
    baseline_rows: int = 64
    candidates: int | None = None
    seed: int = 0

    def _sites(self, model: Model) -> list[str]:
        layers = range(model.n_layers)
        if self.stream != "resid":
            return [f"{self.stream}.{layer}" for layer in layers]
        return ["resid_pre.0", *(f"resid_post.{layer}" for layer in layers)]

    def _rows(self, model: Model) -> int:
        held = LOGIT_BYTES.get(model.device.type, LOGIT_BYTES["cpu"])
        return max(1, held // (4 * model.parts.vocabulary))

    def prepare(self, model: Model) -> Shared:
        """One forward pass: the states to read, and which of them are also read through the rotation."""
        sites, last = self._sites(model), f"resid_post.{model.n_layers - 1}"
        got = capture(model, self.tokens, [*dict.fromkeys([*sites, last]), "logits"])
        logits = got["logits"][0, :-1].float()
        target = torch.tensor(self.tokens[1:], device=logits.device)
        own = logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1)
        states = torch.stack([got[site][0] for site in sites])
        generator = torch.Generator().manual_seed(self.seed)
        positions = max(len(self.tokens) - 1, 1)  # the last one has no next token to find
        chosen = torch.randperm(len(sites) * positions, generator=generator)[: self.baseline_rows]
        rotated = torch.stack([chosen // positions, chosen % positions], -1)
        through = candidates(model, self.candidates, self.top_k) if self.candidates else kept(model)
        turned = rotate(states[rotated[:, 0], rotated[:, 1]], generator)
        return Shared(Blocks(model), states, got[last][0], own, rotated, turned, through)

    def plan(self, model: Model) -> Sequence[Unit]:
        """Blocks of positions.

        Raises:
            BadInput: ``top_k``, ``baseline_rows`` or ``candidates`` out of range.
        """
        vocabulary = model.parts.vocabulary
        if not 1 <= self.top_k <= vocabulary:
            raise BadInput(
                f"top_k={self.top_k}: keep between 1 and the {vocabulary} tokens of the vocabulary"
            )
        if self.baseline_rows < 1:
            raise BadInput(f"baseline_rows={self.baseline_rows}: the baseline needs at least one row")
        if self.candidates is not None:
            candidates(model, self.candidates, self.top_k)
        length = len(self.tokens)
        return [
            Unit(f"positions-{start:05d}", {"start": start, "stop": stop}, cost=stop - start)
            for start in range(0, length, POSITIONS_A_UNIT)
            for stop in [min(start + POSITIONS_A_UNIT, length)]
        ]

    def measure(self, model: Model, unit: Unit, shared: Shared) -> Pieces:
        """Read out every layer at some positions, a few at a time."""
        start, stop = unit.detail["start"], unit.detail["stop"]
        step = max(1, self._rows(model) // (len(shared.states) + 1))
        lens, baseline = [], []
        with torch.no_grad():
            for begin in range(start, stop, step):
                read, rotated = self._read(shared, begin, min(begin + step, stop))
                lens.append(read)
                baseline.append(rotated)
        return (
            {name: torch.cat([part[name] for part in lens], 1) for name in lens[0]}
            | {f"baseline_{name}": torch.cat([part[name] for part in baseline]) for name in baseline[0]}
            | {"model_log_probability": shared.model_log_probability[start:stop]}
        )

    def _read(self, shared: Shared, start: int, stop: int) -> tuple[Pieces, Pieces]:
        """The lens at positions from start to stop, and the rotated rows that fall there."""
        # by position, then by layer: a position's layers are held against one distribution
        states = shared.states[:, start:stop].transpose(0, 1)
        positions, layers, width = states.shape
        inside = (shared.rotated[:, 1] >= start) & (shared.rotated[:, 1] < stop)
        (layer, place), turned = shared.rotated[inside].unbind(-1), shared.turned[inside]
        last = shared.final[start:stop]
        if self.stream == "resid":
            last = last[:0]  # what the lens reads last is the model's end already
        with unembedding_by(shared.unembedding):
            logits = shared.blocks.readout(torch.cat([states.reshape(-1, width), last, turned])).float()
        own, ends, baseline = logits.split([positions * layers, len(last), len(turned)])
        final = ends if len(last) else own.unflatten(0, (positions, layers))[:, -1]
        targets = torch.tensor((*self.tokens, 0)[start + 1 : stop + 1], device=logits.device)
        distribution, here = final.log_softmax(-1), torch.arange(positions, device=logits.device)
        of = here.repeat_interleave(layers)
        statistics = read_rows(own, distribution, of, targets[of], self.top_k)
        lens = {
            name: value.unflatten(0, (positions, layers)).transpose(0, 1)
            for name, value in statistics.items()
        }
        at = place - start
        rotated = read_rows(baseline, distribution, at, targets[at], 1)
        agrees = rotated["top_token"][:, 0] == final.argmax(-1)[at]
        kept_of_rotated = {name: rotated[name] for name in LENS[2:]}
        return lens, {**kept_of_rotated, "layer": layer, "position": place, "agrees": agrees}

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Label what was read."""
        parts = list(pieces.values())
        lens = {name: torch.cat([part[name] for part in parts], 1) for name in LENS}
        along = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name not in LENS}
        if len(self.tokens) == 1:  # nothing follows, so there is nothing for the baseline to find either
            along["baseline_target_rank"].fill_(-1)
            along["baseline_target_log_probability"].fill_(torch.nan)
        texts = model.token_texts(self.tokens)
        has_next = torch.arange(len(self.tokens)) < len(self.tokens) - 1
        ids = lens["top_token"]
        names = dict(zip((unique := ids.unique().tolist()), model.token_texts(unique), strict=True))
        table, cell = ("layer", "position", "rank"), ("layer", "position")
        variables: dict[str, Any] = {
            "top_token": (table, ids.numpy(), {"long_name": "most probable tokens"}),
            "top_token_text": (
                table,
                np.vectorize(names.__getitem__, otypes=[object])(ids.numpy()).astype(str),
            ),
            "top_probability": (table, lens["top_probability"].numpy(), {"units": "1"}),
            "entropy": (cell, lens["entropy"].numpy(), {"units": "nats"}),
            "kl_to_final": (
                cell,
                lens["kl_to_final"].numpy(),
                {"units": "nats", "long_name": "KL(final || layer)"},
            ),
            "target_rank": (cell, torch.where(has_next, lens["target_rank"], -1).numpy()),
            "target_log_probability": (
                cell,
                torch.where(has_next, lens["target_log_probability"], torch.nan).numpy(),
                {"units": "nats", "allow_nan": True},
            ),
            "model_log_probability": (
                ("transition",),
                along.pop("model_log_probability").numpy(),
                {"units": "nats"},
            ),
            **{
                name: (("baseline_row",), values.numpy(), {"allow_nan": len(self.tokens) == 1})
                for name, values in along.items()
            },
        }
        sites = self._sites(model)
        coords = {
            "layer": np.arange(len(sites)),
            "site": ("layer", sites),
            "position": np.arange(len(texts)),
            "token": ("position", texts),
            "next_token": ("position", [*texts[1:], ""]),
            "rank": np.arange(self.top_k),
        }
        unembedding = (
            "float32" if self.candidates is None else f"bfloat16, {self.candidates} candidates rescored"
        )
        attrs = {"model": model.source, "stream": self.stream, "unembedding": unembedding}
        return xr.Dataset(variables, coords, attrs)

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """The last layer is the model itself; the rotated lens finds nothing."""
        return [*([_last_layer(dataset)] if self.stream == "resid" else []), _rotation(dataset)]

    def memory(self, model: Model) -> int:
        """Logits and probabilities of the rows held at once, and the captured states."""
        rows = self._rows(model)
        states = len(self._sites(model)) * len(self.tokens) * model.d_model
        return 4 * (
            3 * rows * model.parts.vocabulary + 2 * states + len(self.tokens) * model.parts.vocabulary
        )


def logit_lens(
    model: Model,
    text: str | Sequence[int] | Tensor,
    *,
    top_k: int = 5,
    stream: Stream = "resid",
    baseline_rows: int = 64,
    candidates: int | None = None,
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
        candidates: some 32 to find the top tokens by an unembedding in bfloat16, each row's largest logits rescored in
            float32: the same top tokens, faster where bfloat16 is; sums over the vocabulary (entropy, KL,
            probabilities) then have its error. ``None`` for float32 throughout.
        seed: of the rotation.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds ``top_token``, ``top_token_text`` and ``top_probability`` (layer,
        position, rank); ``entropy``, ``kl_to_final`` (nats), ``target_rank`` (0 is the top; -1 where there is
        no next token) and ``target_log_probability`` (layer, position); and the same through a random
        rotation as ``baseline_*``. Layer l is the residual stream after l blocks, layer 0 what enters the
        first.

    Raises:
        BadInput: an empty or too long text, or a setting out of range.
    """
    measurement = LogitLens(
        tokens=model.tokens(text),
        top_k=top_k,
        stream=stream,
        baseline_rows=baseline_rows,
        candidates=candidates,
        seed=seed,
    )
    return perform(measurement, model, **run)


def rotate(states: Tensor, generator: torch.Generator) -> Tensor:
    """Turn vectors by one random rotation.

    Only the subspace they span has to be turned, so no (d_model, d_model) matrix is made: with the thin QR
    decomposition X^T = Q R, the rotated vectors are Z R, where Z is a random orthonormal basis of as many vectors.

    Args:
        states: X, (row, d_model).
        generator: on the processor.

    Returns:
        The rotated vectors, (row, d_model), with all inner products kept.
    """
    _, coordinates = torch.linalg.qr(states.float().mT)
    directions = torch.randn(states.shape[1], len(coordinates), generator=generator)
    basis, triangle = torch.linalg.qr(directions.to(coordinates))
    basis = basis * triangle.diagonal().sign()  # else the decomposition prefers some rotations
    return (basis @ coordinates).mT.to(states)


def _last_layer(dataset: xr.Dataset) -> Check:
    lens = dataset["target_log_probability"].to_numpy()[-1, :-1]
    error = float(np.abs(lens - dataset["model_log_probability"].to_numpy()).max(initial=0.0))
    message = f"The lens at the last layer differs from the model's own log-probabilities by at most {error:.1e} nats."
    # float32 sums over a vocabulary; half precision is judged by the same figure and warned of
    allowed = 1e-3 if dataset.attrs["unembedding"] == "float32" else 5e-2
    if error <= allowed:
        return Check("L101", "last layer is not the model", "pass", error, message)
    remedy = "Load the model in float32; if it stays, the readout of this architecture is not its own."
    verdict = "warn" if error < 0.1 else "fail"
    return Check("L101", "last layer is not the model", verdict, error, message, remedy)


def _rotation(dataset: xr.Dataset) -> Check:
    agreement = float(dataset["baseline_agrees"].mean())
    count = dataset.sizes["baseline_row"]
    message = f"Through a random rotation {agreement:.1%} of {count} rows name the model's top token."
    if agreement <= max(0.05, 1 / count):
        return Check("L102", "a random rotation reads the answer", "pass", agreement, message)
    remedy = (
        "The unembedding favours few tokens whatever it reads: compare with the baseline rows, not with zero."
    )
    return Check("L102", "a random rotation reads the answer", "warn", agreement, message, remedy)
