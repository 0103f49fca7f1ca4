"""Commands that measure, made from the verbs themselves: same settings, names, defaults and words.

A setting that a verb gains is an option of its command without a line written here.
"""

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Annotated, Any, NamedTuple, NoReturn, Union

import torch
from cyclopts import Parameter

from assay.cli.options import Loading, Running, require_utf8, text_of
from assay.cli.output import (
    amount,
    check_lines,
    columns,
    dataset_document,
    duration,
    note,
    path_text,
    print_json,
    printable,
    say,
)
from assay.cli.progress import shown
from assay.runs.executors import Executor, InProcess, LocalProcesses, reload
from assay.runs.forecast import Forecast, forecast
from assay.runs.measurement import Measurement, Unit
from assay.runs.result import Result


class Verb(NamedTuple):
    """Where a verb lives, and the model it is used on when none is named."""

    module: str
    name: str
    model: str | None = None


VERBS = {
    "lens": Verb("assay.activations.logit_lens", "logit_lens"),
    "trace": Verb("assay.activations.causal_trace", "causal_trace"),
    "average_trace": Verb("assay.activations.average_trace", "average_causal_trace"),
    "neurons": Verb("assay.activations.neuron_importance", "neuron_importance"),
    "ablate": Verb("assay.activations.ablation", "ablate"),
    "patch": Verb("assay.activations.patching", "patch"),
    "attribute": Verb("assay.activations.attribution", "attribution_patch"),
    "path": Verb("assay.activations.path_patching", "path_patch"),
    "faithfulness": Verb("assay.activations.faithfulness", "faithfulness"),
    "dla": Verb("assay.activations.direct_logit_attribution", "direct_logit_attribution"),
    "norms": Verb("assay.activations.norm_report", "norm_report"),
    "horizon": Verb("assay.activations.layer_horizon", "layer_horizon"),
    "paths": Verb("assay.activations.layer_paths", "layer_paths"),
    "stages": Verb("assay.activations.layer_stages", "layer_stages"),
    "surgery": Verb("assay.activations.layer_surgery", "layer_surgery"),
    "survey": Verb("assay.activations.survey", "survey", model="smollm2"),
}
MODEL_HELP = "What to measure."
COMPANIONS = ("_stderr", "_low", "_high")
LINES = 12
"""Findings said on the terminal; the report has all."""


def __getattr__(name: str) -> Callable[..., int]:
    """Make the command of a verb when it is first asked for, so that only its own room is imported."""
    if name not in VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    verb = VERBS[name]
    made = command(getattr(import_module(verb.module), verb.name), model=verb.model)
    globals()[name] = made
    return made


def command(verb: Callable[..., Result], *, model: str | None = None) -> Callable[..., int]:
    """Make a command of a verb.

    Args:
        verb: a function of a model, a text and settings that returns a result.
        model: the model when none is named; ``None`` where one has to be.

    Returns:
        A function whose signature and docstring say what the command takes.
    """
    signature, texts = _signature(verb, model), _texts(verb)

    def run(*given: Any, **named: Any) -> int:
        bound = signature.bind(*given, **named)
        bound.apply_defaults()
        settings = dict(bound.arguments)
        source, loading, running = (settings.pop(name) for name in ("model", "loading", "running"))
        for setting in settings.values():
            require_utf8(setting)
        settings |= {name: _read(settings[name]) for name in texts}
        note(f"loading {source}", quiet=running.quiet)
        bound = partial(verb, loading.load(source), **settings)
        return measured(bound, verb.__name__.replace("_", " "), running)

    return dressed(run, verb, signature)


def dressed(
    run: Callable[..., int], verb: Callable[..., Result], signature: inspect.Signature
) -> Callable[..., int]:
    """Give a function the name and the words of a verb, and the signature that its command shows."""
    run.__name__ = verb.__name__
    run.__doc__ = re.sub(r":\w+:`([^`]+)`", r"\1", verb.__doc__ or "")  # a terminal follows no links
    run.__annotations__ = {
        parameter.name: parameter.annotation for parameter in signature.parameters.values()
    }
    run.__signature__ = signature  # type: ignore[attr-defined]
    return run


def _texts(verb: Callable[..., Result]) -> list[str]:
    """The settings that are texts: what follows the model in every verb, and all that prompts may be given to."""
    hints = typing.get_type_hints(verb)
    _, text, *others = settings_of(verb)
    prompts = [other for other in others if Sequence[Sequence[int]] in _alternatives(hints[other.name])]
    return [text.name, *(other.name for other in prompts)]


def _read(given: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    """The texts that words stand for."""
    return tuple(map(text_of, given)) if isinstance(given, tuple) else given and text_of(given)


def _signature(verb: Callable[..., Result], model: str | None) -> inspect.Signature:
    """The verb's signature as a terminal can serve it: model and text by place, everything else by name."""
    hints = typing.get_type_hints(verb)
    _, text, *settings = settings_of(verb)
    placed = inspect.Parameter.POSITIONAL_OR_KEYWORD
    source = Annotated[str, Parameter(help=MODEL_HELP)]
    written = _spelled(hints[text.name])
    if written in (str, str | None):  # several texts would swallow a mistyped option
        written = Annotated[written, Parameter(allow_leading_hyphen=True)]
    parameters = [
        inspect.Parameter("model", placed, annotation=source, default=model or inspect.Parameter.empty),
        text.replace(annotation=written, kind=placed),
        *offered(verb, settings),
    ]
    return inspect.Signature(parameters, return_annotation=int)


def settings_of(verb: Callable[..., Result]) -> list[inspect.Parameter]:
    """Give what a verb takes, the options of a run left out."""
    return [
        parameter
        for parameter in inspect.signature(verb).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]


def offered(verb: Callable[..., Result], settings: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
    """Give settings of a verb as options, and after them those of loading and running."""
    hints, named = typing.get_type_hints(verb), inspect.Parameter.KEYWORD_ONLY
    return [
        *(setting.replace(annotation=_spelled(hints[setting.name]), kind=named) for setting in settings),
        inspect.Parameter("loading", named, annotation=Loading, default=Loading()),
        inspect.Parameter("running", named, annotation=Running, default=Running()),
    ]


def _spelled(annotation: Any) -> Any:
    """What of a setting's type can be written as words: text before numbers, several words before one."""
    options = list(_alternatives(annotation))
    optional = type(None) in options
    lists = [option for option in options if typing.get_origin(option) is not None]
    words = [option for option in options if option in (str, int, float, bool) or _is_literal(option)]
    sequences = [option for option in lists if _is_words(option)] or ([] if words else lists)
    if sequences:
        chosen: Any = Annotated[
            tuple[typing.get_args(sequences[0])[0], ...], Parameter(consume_multiple=True)
        ]
    else:
        literals = [option for option in words if _is_literal(option)]
        chosen = str if str in words else Union[(*literals, words[0])]
    return chosen | None if optional else chosen


def _alternatives(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for option in typing.get_args(annotation):
            yield from _alternatives(option)
    else:
        yield annotation


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal


def _is_words(annotation: Any) -> bool:
    element, *_ = typing.get_args(annotation)
    return not _is_literal(annotation) and (element is str or _is_literal(element))


def measured(
    bound: Callable[..., Result], title: str, running: Running, rebuild: Callable[..., Any] = reload
) -> int:
    """Run a verb that has all it needs but how to run, and write down what comes of it; give the exit code.

    Args:
        bound: the verb with its model and settings.
        title: what stands before the bar.
        running: how to run.
        rebuild: makes what is measured once more in another process; see `LocalProcesses`.

    Raises:
        KeyboardInterrupt: stopped by Ctrl-C, with where the finished units are.
    """
    if running.dry_run:
        return _rehearse(bound, as_json=running.as_json)
    try:
        with _executor(running.processes, rebuild) as executor, shown(title, quiet=running.quiet) as progress:
            result = bound(out=running.out, progress=progress, executor=executor)
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(
            f"Finished units are kept in {printable(str(running.out))}: the same command goes on from there."
        ) from stopped
    note("writing the report", quiet=running.quiet)
    page = result.report()
    if running.as_json:
        print_json(document(result) | {"report": page.resolve()})
    else:
        say([*([] if running.quiet else summary(result)), path_text(page)])
    return 0


@contextmanager
def _executor(processes: int, rebuild: Callable[..., Any]) -> Generator[Executor]:
    """Where units are measured; several processes share the threads that one would use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // processes))
    try:
        yield LocalProcesses(processes, rebuild) if processes > 1 else InProcess()
    finally:
        torch.set_num_threads(threads)


class _Rehearsed(Exception):
    """Carries the forecast and the bytes of the weights out of a verb that was called to learn what it would do."""

    def __init__(self, expected: Forecast, weights: int) -> None:
        super().__init__()
        self.expected, self.weights = expected, weights


class _Rehearsal:
    """An executor that measures nothing but one unit, to tell what all of them would take."""

    def run(self, measurement: Measurement, model: Any, units: Sequence[Unit]) -> NoReturn:
        weights = sum(part.numel() * part.element_size() for part in model.module.parameters())
        raise _Rehearsed(forecast(measurement, model), weights)


def _rehearse(bound: Callable[..., Result], *, as_json: bool) -> int:
    try:
        bound(executor=_Rehearsal())
    except _Rehearsed as rehearsed:
        expected, weights = rehearsed.expected, rehearsed.weights
    else:
        raise AssertionError("a verb came back without asking its executor")
    if as_json:
        print_json(
            {
                "units": expected.units,
                "seconds": expected.seconds,
                "memory_bytes": expected.memory,
                "weights_bytes": weights,
            }
        )
    else:
        memory = "unknown" if expected.memory is None else amount(expected.memory)
        say(
            [
                f"units   {expected.units}",
                f"time    about {duration(expected.seconds)}",
                f"memory  about {memory} beyond the weights ({amount(weights)})",
            ]
        )
    return 0


def document(result: Result) -> dict[str, Any]:
    """Give a result as JSON can hold it: where it is, its settings, checks and every number."""
    return {
        "run": result.path and result.path.resolve(),
        "measurement": result.measurement.name,
        "settings": result.manifest["settings"],
        "model": result.manifest["model"],
        "checks": result.checks,
        "dataset": dataset_document(result.dataset),
    }


def summary(result: Result) -> list[str]:
    """Say in a few lines what a result holds: checks that fail, words, single numbers, findings, other checks."""
    from assay.report.contents import findings_of

    attributes, variables = result.dataset.attrs, result.dataset.data_vars
    words = [(str(key), printable(value)) for key, value in attributes.items() if _is_said(str(key), value)]
    single = [str(name) for name, variable in variables.items() if not variable.dims]
    numbers = [(name, _number(result, name)) for name in single if not name.endswith(COMPANIONS)]
    passed = [check for check in result.checks if check.verdict == "pass"]
    return [
        *check_lines([check for check in result.checks if check.verdict == "fail"]),
        *columns([*words, *numbers]),
        *(f"• {printable(finding.text)}" for finding in findings_of(result)[:LINES]),
        *check_lines([check for check in result.checks if check.verdict == "warn"]),
        f"{len(passed)} of {len(result.checks)} checks passed",
    ]


def _is_said(key: str, value: Any) -> bool:
    """Whether an attribute is text that says something, and not the model once more for each part of a survey."""
    return isinstance(value, str) and bool(value) and not key.endswith(".model")


def _number(result: Result, name: str) -> str:
    """A single number with its interval, or its standard error, where it has one."""
    known = result.dataset

    def figure(suffix: str) -> float:
        return float(known[name + suffix]) if name + suffix in known else math.nan

    if math.isnan(figure("")):
        return "none"
    text = f"{figure(''):.4g}"
    if not math.isnan(figure("_low")):
        return f"{text}  [{figure('_low'):.4g}, {figure('_high'):.4g}]"
    return text if math.isnan(figure("_stderr")) else f"{text} ± {figure('_stderr'):.2g}"
