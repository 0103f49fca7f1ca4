"""Is a model fit to be measured: whether what Assay reads of it is what the bare module computes.

Every method rests on the same few promises: reading changes nothing, padding changes nothing, a token cannot
see the ones after it, a shortened forward gives the numbers of a full one. The doctor puts each to the
test on one short prompt. Codes and remedies are listed in ``docs/checks.md``.
"""

import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.models import partial
from assay.models.edits import at
from assay.models.gauges import KeepFloat64, PeakMemory, free_memory
from assay.models.inputs import Batch, batch
from assay.models.intervention import capture, intervene
from assay.models.loading import require_finite
from assay.models.model import Model
from assay.models.sites import PER_LAYER, WHOLE, find_port

TEXT = (
    "The café on the corner opens at 7:30, said Mrs Dursley.\n"
    "Mr Dursley walked to the café in the rain; when he came home, Mrs Dursley said:"
)
SYNTHETIC_LENGTH = 24
REPEATS = 5
RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference allowed, relative to the largest logit: sums of hundreds of terms in another order."""
RELATIVE_HALF = 5e-2
PROBABILITY = 1e-3
"""Largest error of a probability from rounding; beyond it a report's third digit is not the model's."""


@dataclass(frozen=True)
class Examination:
    """What the doctor found.

    Attributes:
        model: what the model was loaded from.
        checks: the verdicts, in the order of their codes.
        figures: numbers that are no verdicts: ``layers``, ``parameters``, ``weights_bytes``, ``tokens`` of
            the prompt examined, ``forward_bytes`` (the most held beyond the weights during its forward),
            ``forward_seconds`` (median), ``tokens_per_second``.
        sites: site to the number of layers that have it; 1 for those of the whole model.
        absent: site to the reason why some or all layers have none.
    """

    model: str
    checks: tuple[Check, ...]
    figures: Mapping[str, float]
    sites: Mapping[str, int]
    absent: Mapping[str, str]

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return all(check.verdict != "fail" for check in self.checks)


def doctor(model: Model, text: str = TEXT, *, clock: Callable[[], float] = time.perf_counter) -> Examination:
    """Examine a model: do reading, padding and shortened forwards leave its numbers as they are.

    Costs about thirty forwards of one short prompt, and for a moment the memory of a copy of the weights in
    float64 (left out where that does not fit).

    Args:
        model: a decoder from ``load`` or ``wrap``.
        text: the prompt examined; random tokens take its place where the model has no tokenizer.
        clock: gives seconds; what the forward is timed with.

    Returns:
        Verdicts and figures.

    A model that is not a decoder is refused with `BadInput`, which shows its tree and the layout to pass.
    """
    sites, absent = _sites(model)
    ids = _ids(model, text)
    finite = _finite(model, ids)
    checks = [finite]
    if finite.verdict != "fail":  # every comparison with NaN would fail, and hide the cause
        checks += [
            _repeatable(model, ids), _parity(model, ids), _causal(model, ids), _padding(model, ids),
            _rounding(model, ids), _partial(model, ids), _sums(model, ids),
        ]  # fmt: skip
    if model.tokenizer is not None:
        checks.append(_round_trip(model, text))
    return Examination(model.source, tuple(checks), _figures(model, ids, clock), sites, absent)


def _sites(model: Model) -> tuple[dict[str, int], dict[str, str]]:
    """How many layers have each site, and why others have not."""
    found: dict[str, int] = {}
    absent: dict[str, str] = {}
    layered = [(name, f"{name}.{layer}") for name in PER_LAYER for layer in range(len(model.parts.blocks))]
    for name, site in [(WHOLE[0], WHOLE[0]), *layered, *((name, name) for name in WHOLE[1:])]:
        try:
            find_port(model.parts, model.module, site)
        except BadInput as error:
            absent.setdefault(name, str(error).partition(": ")[2])
        else:
            found[name] = found.get(name, 0) + 1
    return found, absent


def _ids(model: Model, text: str) -> Tensor:
    """The prompt's tokens that fit the context, (1, pos); random ones where no tokenizer fits the model."""
    limit = model.context_length or SYNTHETIC_LENGTH
    known = list(model.tokenizer(text)["input_ids"])[:limit] if model.tokenizer is not None else []
    if not known or max(known) >= model.parts.vocabulary:
        generator, size = torch.Generator().manual_seed(0), (min(limit, SYNTHETIC_LENGTH),)
        known = torch.randint(model.parts.vocabulary, size, generator=generator).tolist()
    return torch.tensor([known], device=model.device)


@torch.no_grad()
def _bare(model: Model, ids: Tensor) -> Tensor:
    """Logits of the module called as its authors meant it, none of our code in between."""
    output = model.module(input_ids=ids)
    return output if isinstance(output, Tensor) else output.logits


def _finite(model: Model, ids: Tensor) -> Check:
    title = "not finite"
    remedy = "Load the model again; if it is in float16, load it in bfloat16 or float32."
    try:
        require_finite(model.module)
    except BadInput as error:
        return Check("D101", title, "fail", None, str(error), remedy)
    logits = _bare(model, ids)
    wrong = int((~logits.isfinite()).sum())
    if wrong:
        message = f"{wrong} of {logits.numel()} logits are NaN or infinite."
        return Check("D101", title, "fail", wrong, message, remedy)
    return Check("D101", title, "pass", 0, "All weights and all logits are finite.")


def _repeatable(model: Model, ids: Tensor) -> Check:
    figure = _largest(_bare(model, ids) - _bare(model, ids))
    message = f"Two runs on the same tokens differ by {figure:.2g} in the logits."
    remedy = "Call module.eval(); dropout or sampling written into the forward has to be taken out."
    return _verdict("D102", "two runs differ", figure, 0.0, message, remedy)


def _parity(model: Model, ids: Tensor) -> Check:
    title, sites = "reading changes the model", model.sites()
    remedy = "The module behaves otherwise when hooked: look for code that inspects hooks, or torch.compile."
    bare = _bare(model, ids)
    try:
        watched = capture(model, ids, sites)["logits"]
    except BadInput as error:
        return Check("D103", title, "fail", None, f"Not every listed site can be read: {error}.", remedy)
    figure = max(_largest(watched - bare), _largest(_bare(model, ids) - bare))
    message = f"With all {len(sites)} sites captured, logits differ from the bare module's by {figure:.2g}."
    return _verdict("D103", title, figure, 0.0, message, remedy)


def _causal(model: Model, ids: Tensor) -> Check:
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % model.parts.vocabulary
    before, after = _bare(model, ids)[:, :-1], _bare(model, changed)[:, :-1]
    figure = _largest(after - before)
    message = f"Another last token changes earlier logits by {figure:.2g}."
    remedy = "This is no causal decoder: lens and trace assume that no token sees the ones after it."
    return _verdict("D104", "tokens see the future", figure, _allowed(before), message, remedy)


def _padding(model: Model, ids: Tensor) -> Check:
    long, short = ids[0].tolist(), ids[0, : max(1, ids.shape[1] // 3)].tolist()
    alone = _bare(model, ids[:, : len(short)])[0]
    differences: dict[str, float] = {}
    for side in ("left", "right"):
        made = batch(model, [long, short], padding_side=side)
        padded = capture(model, made, ["logits"])["logits"][1]
        mask = torch.ones(len(long)) if made.attention_mask is None else made.attention_mask[1]
        differences[side] = _largest(padded[mask.bool().to(padded.device)] - alone)
    figure = max(differences.values())
    spread = ", ".join(f"{value:.2g} padded on the {side}" for side, value in differences.items())
    remedy = "The module does not honour attention_mask or position_ids: give it prompts of one length."
    return _verdict(
        "D105", "padding changes the numbers", figure, _allowed(alone),
        f"A prompt in a batch differs from the same prompt alone by {spread} in the logits.", remedy,
    )  # fmt: skip


def _rounding(model: Model, ids: Tensor) -> Check:
    code, title = "D106", "rounding shows"
    needed = 8 * sum(p.numel() for p in model.module.parameters()) + _weights_bytes(model.module)
    free = free_memory(model.device)
    if needed > free:
        message = f"Not compared with float64: {needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free."
        return Check(code, title, "warn", None, message, "Examine the model on a machine with more memory.")
    twin = copy.deepcopy(model.module).double()
    if isinstance(twin, PreTrainedModel):  # the grouped kernel of mixtures knows no float64
        twin.set_experts_implementation("eager")
    try:
        with KeepFloat64():
            exact = _bare(Model(twin, None, None, model.source), ids)
    except (
        RuntimeError
    ) as error:  # code of the module's own that insists on a dtype or is tied to the original
        message = (
            f"Not compared with float64, in which the module does not run: {str(error).splitlines()[0]}."
        )
        return Check(
            code, title, "warn", None, message, "Nothing has to be done; rounding is just not known."
        )
    given = _bare(model, ids).double()
    figure, of_logits = _largest(given.softmax(-1) - exact.softmax(-1)), _largest(given - exact)
    name = str(model.dtype).removeprefix("torch.")
    message = f"From {name} to float64, logits change by {of_logits:.2g} and probabilities by {figure:.2g}."
    remedy = "Load the model in float32; if it is, the network amplifies rounding: read few digits."
    verdict = "pass" if figure <= PROBABILITY else "warn"
    return Check(code, title, verdict, figure, message, "" if verdict == "pass" else remedy)


def _partial(model: Model, ids: Tensor) -> Check:
    """One edit of the stream, in the middle of network and prompt, by a partial and by a full forward."""
    code, title = "D107", "partial forwards are not exact"
    layer, place = model.n_layers // 2, ids.shape[1] // 2
    site = f"resid_pre.{layer}"
    with torch.no_grad():
        recording = partial.record(model, Batch(ids))
    value = recording.resid[layer][:, :1]
    variant = (partial.SiteEdit(site, value, (place,)),)
    everywhere = range(ids.shape[1])
    shortened = partial.partial_forward(recording, [variant], lambda logits: logits, positions=everywhere)[0]

    full = intervene(model, Batch(ids), {site: at(value, positions=place)})["logits"]
    figure = _largest(shortened - full)
    way = f"served by full forwards ({recording.fallback})" if recording.fallback else "served"
    message = f"Partial forwards are {way}; an edited run differs from a full one by {figure:.2g} (logits)."
    if figure <= _allowed(full) and recording.fallback:
        remedy = "Nothing has to be done: traces are right, only slower."
        return Check(code, title, "warn", figure, message, remedy)
    remedy = "Patch with assay.intervene, which uses full forwards, and please report the architecture."
    return _verdict(code, title, figure, _allowed(full), message, remedy)


def _sums(model: Model, ids: Tensor) -> Check:
    """Is resid_post = resid_pre + c (attn_out + mlp_out), with one c for the model; c by least squares."""
    code, title = "D108", "blocks do not add up"
    known, names = set(model.sites()), ("resid_pre", "attn_out", "mlp_out", "resid_post")
    layers = [layer for layer in range(model.n_layers) if {f"{name}.{layer}" for name in names} <= known]
    if not layers:
        return Check(code, title, "warn", None, "No layer has both attn_out and mlp_out.", _ADDITIVE)
    found = capture(model, ids, [f"{name}.{layer}" for name in names for layer in layers])
    stacked = (torch.stack([found[f"{name}.{layer}"] for layer in layers]).double() for name in names)
    before, attention, mlp, after = stacked
    written, gained = attention + mlp, after - before
    scale = float((written * gained).sum() / written.square().sum())
    figure = _largest(gained - scale * written) / _largest(after)
    message = (
        f"In {len(layers)} of {model.n_layers} blocks, resid_post is resid_pre + {scale:.6g} "
        f"(attn_out + mlp_out) up to {figure:.2g} of its largest entry."
    )
    verdict = "pass" if figure <= _relative(model.dtype) else "warn"
    return Check(code, title, verdict, figure, message, "" if verdict == "pass" else _ADDITIVE)


_ADDITIVE = (
    "Do not split the stream into contributions of attention and MLP: the family normalises their sum, "
    "or the layout points at other modules."
)


def _round_trip(model: Model, text: str) -> Check:
    code, title = "D109", "the tokenizer loses text"
    tokenizer = model.tokenizer
    assert tokenizer is not None
    ids = list(tokenizer(text)["input_ids"])
    beyond = sum(token >= model.parts.vocabulary for token in ids)
    if beyond:
        rows = model.parts.vocabulary
        message = f"{beyond} of {len(ids)} tokens are beyond the {rows} rows of the embedding."
        return Check(code, title, "fail", beyond, message, "Load the tokenizer that belongs to this model.")
    back = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if back.strip() == text.strip():
        message = f"A text of {len(text)} characters comes back from its {len(ids)} tokens."
        return Check(code, title, "pass", 0, message)
    same = len(os.path.commonprefix([text, back]))
    message = f"From character {same} on, {text[same:][:12]!r} comes back as {back[same:][:12]!r}."
    remedy = "Quote prompts as the tokens shown, not as the text typed."
    return Check(code, title, "warn", same, message, remedy)


def _figures(model: Model, ids: Tensor, clock: Callable[[], float]) -> dict[str, float]:
    with PeakMemory(model.module) as memory:
        _bare(model, ids)
    seconds = median(_timed(model, ids, clock) for _ in range(REPEATS))
    return {
        "layers": model.n_layers,
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "weights_bytes": _weights_bytes(model.module),
        "tokens": ids.shape[1],
        "forward_bytes": memory.peak,
        "forward_seconds": seconds,
        "tokens_per_second": ids.shape[1] / seconds,
    }


def _timed(model: Model, ids: Tensor, clock: Callable[[], float]) -> float:
    begun = clock()
    _bare(model, ids)[0, -1, 0].item()  # waits for an accelerator
    return clock() - begun


def _weights_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _relative(dtype: torch.dtype) -> float:
    return RELATIVE.get(dtype, RELATIVE_HALF)


def _allowed(logits: Tensor) -> float:
    return _relative(logits.dtype) * _largest(logits)


def _verdict(code: str, title: str, figure: float, allowed: float, message: str, remedy: str) -> Check:
    """Pass up to ``allowed``, fail beyond it and for NaN."""
    if figure <= allowed:
        return Check(code, title, "pass", figure, message)
    bound = f" Allowed is {allowed:.2g}." if allowed else ""
    return Check(code, title, "fail", figure, message + bound, remedy)
