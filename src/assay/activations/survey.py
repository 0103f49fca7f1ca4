"""Survey: lens, causal trace and neuron importance of one text in which a name recurs.

An unusual name that comes back can only be copied, so its later occurrence shows where a model keeps what it read.
The lens reads the whole text. Trace and neurons read the prompt, which ends inside the name's last occurrence: after
its first token, or before it where the name is one token. The name's next token is the answer; one token, because no
single state brings back several at once. The trace corrupts all earlier occurrences: in the shipped passage by other
names, where the tokenizer gives all of them as many tokens, and otherwise by noise.

The three are measured as they are alone (:mod:`assay.activations.logit_lens`, :mod:`~assay.activations.causal_trace`,
:mod:`~assay.activations.neuron_importance`), with their baselines, intervals and checks, and lie in one dataset under
the prefixes ``lens.``, ``trace.`` and ``neurons.``; :func:`part` takes one out.

Cost: the sum of the three; most of it is the trace's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Unpack

import xarray as xr

from assay.activations.causal_trace import KINDS, CausalTrace, Kind
from assay.activations.logit_lens import LogitLens
from assay.activations.material import passage
from assay.activations.neuron_importance import NeuronImportance
from assay.activations.subject import subject_positions
from assay.errors import BadInput
from assay.estimates.checks import Check
from assay.models.model import Model, Tokens
from assay.runs.measurement import Measurement, Pieces, Unit
from assay.runs.perform import RunOptions, perform
from assay.runs.result import Result

PARTS = ("lens", "trace", "neurons")
EXACT = 32


class Recurrence(NamedTuple):
    """A text read as a question for its recurring name.

    Attributes:
        tokens: token ids of the text.
        length: how many of them are the prompt.
        subject: positions of the name's occurrences before the last.
        answer: the name's token that follows the prompt.
    """

    tokens: Tokens
    length: int
    subject: tuple[int, ...]
    answer: Tokens


@dataclass(frozen=True, kw_only=True)
class Survey(Measurement):
    """Lens, causal trace and neuron importance of one text.

    Attributes:
        tokens: token ids of the text, which the lens reads.
        length: how many of them are the prompt, which trace and neurons read.
        subject: positions that the trace corrupts.
        answer: token ids of the answer.
        replacements: prompts with another name, one a sample, instead of noise.
        label: the name, for the result's attributes.
        top_k: how many tokens of each lens cell, and neurons of each layer and position, are named.
        noise_samples: number of noise samples.
        kinds: what the trace restores.
        window: how many blocks' MLPs or attentions the trace restores together.
        seed: of everything drawn.
    """

    name: ClassVar[str] = "survey"
    tokens: Tokens
    length: int
    subject: tuple[int, ...]
    answer: Tokens
    replacements: tuple[Tokens, ...] = ()
    label: str = ""
    top_k: int = 5
    noise_samples: int = 5
    kinds: tuple[Kind, ...] = KINDS
    window: int = 10
    seed: int = 0

    @property
    def parts(self) -> dict[str, Measurement]:
        """The three measurements by their prefixes."""
        prompt = self.tokens[: self.length]
        return {
            "lens": LogitLens(tokens=self.tokens, top_k=self.top_k, seed=self.seed),
            "trace": CausalTrace(
                tokens=prompt,
                subject=self.subject,
                answer=self.answer,
                replacements=self.replacements,
                noise_samples=self.noise_samples,
                kinds=self.kinds,
                window=self.window,
                seed=self.seed,
            ),
            "neurons": NeuronImportance(
                tokens=prompt, answer=self.answer, top_k=self.top_k, exact=EXACT, seed=self.seed
            ),
        }

    def prepare(self, model: Model) -> dict[str, Any]:
        """What each part shares between its units."""
        return {name: measurement.prepare(model) for name, measurement in self.parts.items()}

    def plan(self, model: Model) -> Sequence[Unit]:
        """The parts' units under their prefixes, with costs that compare."""
        block = sum(p.numel() for p in model.parts.blocks[0].module.parameters())
        rate = {  # block-tokens a unit of the part's own cost
            "lens": model.parts.vocabulary * model.d_model / block,  # a row to unembed
            "trace": model.n_layers
            / 2,  # a variant of each layer, which on average passes through half of the blocks
            "neurons": 1.0,
        }
        return [
            Unit(f"{name}.{unit.name}", unit.detail, unit.cost * rate[name])
            for name, measurement in self.parts.items()
            for unit in measurement.plan(model)
        ]

    def measure(self, model: Model, unit: Unit, shared: Mapping[str, Any]) -> Pieces:
        """Measure a unit of the part it belongs to."""
        name, _, own = unit.name.partition(".")
        return self.parts[name].measure(model, Unit(own, unit.detail, unit.cost), shared[name])

    def combine(self, model: Model, pieces: Mapping[str, Pieces]) -> xr.Dataset:
        """Combine each part, and put the three datasets into one."""
        own: dict[str, dict[str, Pieces]] = {name: {} for name in self.parts}
        for unit, piece in pieces.items():
            name, _, inside = unit.partition(".")
            own[name][inside] = piece
        datasets = {name: measurement.combine(model, own[name]) for name, measurement in self.parts.items()}
        return _together(datasets).assign_attrs(model=model.source, name=self.label)

    def checks(self, dataset: xr.Dataset) -> list[Check]:
        """The parts' own checks, each saying which part it is about."""
        return [
            replace(check, message=f"{name.capitalize()}: {check.message}")
            for name, measurement in self.parts.items()
            for check in measurement.checks(part(dataset, name))
        ]

    def memory(self, model: Model) -> int:
        """The most that one part needs."""
        return max(measurement.memory(model) or 0 for measurement in self.parts.values())


def survey(
    model: Model,
    text: str | None = None,
    name: str | None = None,
    *,
    top_k: int = 5,
    noise_samples: int = 5,
    kinds: Sequence[Kind] = KINDS,
    window: int = 10,
    seed: int = 0,
    **run: Unpack[RunOptions],
) -> Result:
    """Read one text through lens, causal trace and neuron importance, side by side.

    Args:
        model: a decoder from ``load`` or ``wrap``, with its tokenizer.
        text: a text in which a name recurs; a short passage that comes with the project by default.
        name: the name, as it stands in the text at least twice; found in the text by default.
        top_k: how many tokens of each lens cell, and neurons of each layer and position, are named.
        noise_samples: number of corrupted runs: samples of noise, or at most so many of the passage's other names.
        kinds: what the trace restores: ``state``, ``mlp``, ``attn``, ``state_mlp_severed``, ``state_attn_severed``.
        window: how many blocks' MLPs or attentions the trace restores together.
        seed: of everything drawn.
        **run: where to keep the run, progress, executor (:class:`assay.runs.perform.RunOptions`).

    Returns:
        A result whose dataset holds the three under ``lens.``, ``trace.`` and ``neurons.``; :func:`part` takes one out.

    Raises:
        BadInput: no name that recurs, a name that does not, a setting out of range, or a model that one of the three
            cannot read.
    """
    if text is None and name is not None:
        raise BadInput(f"name={name!r} without a text: give the text in which it recurs")
    shipped = passage()
    read = shipped.text if text is None else text
    label = shipped.name if text is None else name or recurring_name(model, read)
    found = recurrence(model, read, label)
    others = shipped.replacements[:noise_samples] if text is None else ()
    measurement = Survey(
        tokens=found.tokens,
        length=found.length,
        subject=found.subject,
        answer=found.answer,
        replacements=_with_other_names(model, read, label, others, found),
        label=label,
        top_k=top_k,
        noise_samples=noise_samples,
        kinds=tuple(kinds),
        window=min(window, model.n_layers) if window == 10 else window,  # the default, on shallow models
        seed=seed,
    )
    return perform(measurement, model, **run)


def recurrence(model: Model, text: str, name: str) -> Recurrence:
    """Cut a text inside the last occurrence of a name: after its first token, or before it where it is one token.

    Args:
        model: gives the tokenizer.
        text: the text.
        name: the name, as it stands there.

    Returns:
        The text's tokens, the length of the prompt, the positions of the earlier occurrences, and the answer.

    Raises:
        BadInput: the name does not occur twice.
    """
    tokens, last = model.tokens(text), subject_positions(model, text, name, -1)
    earlier = tuple(p for p in subject_positions(model, text, name) if p < last[0])
    if not earlier:
        raise BadInput(
            f"the name {name!r} occurs once in the text; a survey needs one that comes back: give another"
        )
    length = last[0] + (len(last) > 1)
    return Recurrence(tokens, length, earlier, tokens[length : length + 1])


def recurring_name(model: Model, text: str) -> str:
    """The capitalised word that recurs in a text, the longest in tokens where there are several.

    Args:
        model: gives the tokenizer.
        text: the text.

    Returns:
        The word.

    Raises:
        BadInput: no such word.
    """
    words = re.findall(r"[^\W\d_]+", text)
    recurring = [word for word in dict.fromkeys(words) if words.count(word) > 1]
    names = [word for word in recurring if word[0].isupper() and word.lower() not in words]
    if not names:
        raise BadInput("no capitalised word recurs in the text: say which word does, with name= (--name)")
    return max(names, key=lambda word: len(subject_positions(model, text, word, -1)))


def part(dataset: xr.Dataset, name: str) -> xr.Dataset:
    """Take one measurement out of a survey.

    Args:
        dataset: a survey's dataset.
        name: ``lens``, ``trace`` or ``neurons``.

    Returns:
        The dataset as that measurement alone gives it.

    Raises:
        BadInput: the dataset has no such part.
    """
    start = f"{name}."
    own = {
        str(key).removeprefix(start): dataset[key] for key in dataset.variables if str(key).startswith(start)
    }
    if not own:
        raise BadInput(f"no part {name!r} in this dataset; a survey has {', '.join(PARTS)}")
    columns = {
        key: ([str(dim).removeprefix(start) for dim in v.dims], v.to_numpy(), v.attrs)
        for key, v in own.items()
    }
    attrs = {key.removeprefix(start): value for key, value in dataset.attrs.items() if key.startswith(start)}
    return xr.Dataset(columns, attrs=attrs).set_coords([key for key in own if start + key in dataset.coords])


def _together(datasets: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """One flat dataset, every name of a part under its prefix."""
    columns, labels, attrs = {}, [], {}
    for prefix, dataset in datasets.items():
        for key, variable in dataset.variables.items():
            dims = [f"{prefix}.{dim}" for dim in variable.dims]
            columns[f"{prefix}.{key}"] = (dims, variable.to_numpy(), variable.attrs)
        labels += [f"{prefix}.{key}" for key in dataset.coords]
        attrs |= {f"{prefix}.{key}": value for key, value in dataset.attrs.items()}
    return xr.Dataset(columns, attrs=attrs).set_coords(labels)


def _with_other_names(
    model: Model, text: str, name: str, others: Sequence[str], found: Recurrence
) -> tuple[Tokens, ...]:
    """The prompt with each other name at the earlier occurrences; none where one of them moves other tokens."""
    last, prompts = text.rindex(name), []
    kept = [p for p in range(len(found.tokens)) if p not in found.subject]
    for other in others:
        tokens = model.tokens(text[:last].replace(name, other) + text[last:])
        if len(tokens) != len(found.tokens) or any(tokens[p] != found.tokens[p] for p in kept):
            return ()
        prompts.append(tokens[: found.length])
    return tuple(prompts)
