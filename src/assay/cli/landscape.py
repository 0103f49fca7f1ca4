"""Commands that measure weights: a function of the user's own says what is sampled, or a model and a text do.

Like the other commands they are made from the verbs themselves. A verb whose first three arguments are module, loss
and data is one row of `VERBS`.
"""

import inspect
import re
import runpy
import sys
from collections.abc import Callable, Sequence, Set
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from cyclopts import Parameter
from torch import nn

from assay.cli.measure import Verb, dressed, measured, offered, settings_of
from assay.cli.options import Loading, Running, require_utf8
from assay.cli.output import note
from assay.errors import BadInput
from assay.landscape.parts import Parts, parts_of
from assay.landscape.target import Target, target
from assay.landscape.tokens import token_rows
from assay.models.model import Model
from assay.runs.result import Result

VERBS = {
    "llc": Verb("assay.landscape.learning_coefficient", "learning_coefficient"),
    "calibrate": Verb("assay.landscape.calibrate", "calibrate"),
    "refined": Verb("assay.landscape.refined_learning_coefficients", "refined_learning_coefficients"),
}
SUBJECT_HELP = (
    "FILE.py:FUNCTION, which returns module, loss and data; or a language model, with a text as DATA."
)
DATA_HELP = "For a language model: a file of text, or a .safetensors file of token ids."
LOSS_HELP = (
    "A loss by name, instead of the function's or the next token's: next_token, squared_error, cross_entropy, "
    "kl_to_anchor, squared_distance_to_anchor."
)
MASK_HELP = (
    "Sample only this: head.3.5 or mlp.3 of a language model, or parameters by name (* and ? allowed)."
)
OWN = re.compile(r"(.+\.py)(?::(.*))?")
"""A file of the user's, and a function in it."""
CONTEXT_HELP = "Tokens in a row of the text; 256, or as many as the model's context has, when not given."


def __getattr__(name: str) -> Callable[..., int]:
    """Make the command of a verb when it is first asked for, so that only its own room is imported."""
    if name not in VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    verb = getattr(import_module(VERBS[name].module), VERBS[name].name)
    made = command(verb, prepare=_sampled if "mask" in inspect.signature(verb).parameters else _in_parts)
    globals()[name] = made
    return made


class Subject(NamedTuple):
    """What is sampled, as the command line says it; a process of its own can make it from this alone.

    Attributes:
        subject: ``FILE.py:FUNCTION``, or a model as `assay.load` takes it.
        data: the file of text or tokens of a language model.
        loss: name of a loss; the function's own, or the next token's, when None.
        mask: what of it moves; everything when None.
        context: tokens in a row; the reader's own choice when None.
        trust_remote_code: whether code that comes with a model may run.
    """

    subject: str
    data: str | None
    loss: str | None
    mask: str | None = None
    context: int | None = None
    trust_remote_code: bool = False

    def made(self, loading: Loading) -> tuple[nn.Module | Model, Any, Any]:
        """Give module, loss and data.

        Raises:
            BadInput: no such file, function or model, or a function that returns something else.
        """
        place = OWN.fullmatch(self.subject)
        if place:
            if self.data is not None or self.context is not None:
                raise BadInput(f"{self.subject} returns its own data: leave DATA and --context out.")
            module, loss, data = call(Path(place[1]), place[2] or "")
            return module, self.loss or loss, data
        if self.data is None:
            raise BadInput(
                f"{self.subject!r} is taken for a language model, which needs a file of text as DATA. A module of your "
                "own is FILE.py:FUNCTION, where the function returns module, loss and data."
            )
        model = loading.load(self.subject)
        return model, self.loss, token_rows(model, self.data, context=self.context)

    def lasting(self) -> dict[str, Any]:
        """Give the same for a record: with paths that are good from any folder, without leave to run others' code."""
        place = OWN.fullmatch(self.subject)
        file = place[1] if place else self.subject
        words = self._replace(
            subject=lasting(file) + self.subject.removeprefix(file), data=self.data and lasting(self.data)
        )
        return {name: word for name, word in words._asdict().items() if name != "trust_remote_code"}


def lasting(word: str) -> str:
    """Give a path that is good from any folder; a word that is no path stays."""
    path = Path(word).expanduser()
    return str(path.resolve()) if path.exists() else word


def call(file: Path, function: str) -> tuple[Any, Any, Any]:
    """Run a file of the user's as a script that is imported, and call its function.

    Raises:
        BadInput: the file or the function is not there, or it does not return module, loss and data.
    """
    if not file.is_file():
        raise BadInput(f"there is no file {str(file)!r}.")
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # so that it can import its neighbours, as a script could
    found = runpy.run_path(str(file), run_name=file.stem)
    if not callable(found.get(function)):
        known = ", ".join(name for name, value in found.items() if inspect.isfunction(value)) or "none"
        problem = f"has no function {function!r}" if function else "is named without a function of it"
        raise BadInput(f"{str(file)!r} {problem}: write FILE.py:FUNCTION. Functions there: {known}.")
    if needed := _required(found[function]):
        raise BadInput(
            f"{function} in {str(file)!r} needs {', '.join(needed)}: it is called without arguments, so give each a "
            "default, or write a function that calls it."
        )
    returned: object = found[function]()
    if not (
        isinstance(returned, tuple | list)
        and len(returned) == 3
        and isinstance(returned[0], nn.Module | Model)
    ):
        raise BadInput(
            f"{function} in {str(file)!r} returned {type(returned).__name__}: expected module, loss and data."
        )
    return returned[0], returned[1], returned[2]


def _required(function: Callable[..., Any]) -> list[str]:
    """The arguments that a function cannot do without."""
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is inspect.Parameter.empty and parameter.kind not in free
    ]


def rebuild(subject: Subject, source: str, *, device: str, dtype: str) -> Target:
    """Make the target once more in another process; see `LocalProcesses`."""
    loading = Loading(device=device, dtype=dtype, trust_remote_code=subject.trust_remote_code)  # type: ignore[arg-type]
    return target(*subject.made(loading), mask=subject.mask, source=source)


class Prepared(NamedTuple):
    """What a command is about to measure.

    Attributes:
        parts: the verb's first arguments.
        settings: the verb's others, by name.
        rebuild: makes the same once more in another process.
        origin: of what the record says it was made.
    """

    parts: tuple[Any, ...]
    settings: dict[str, Any]
    rebuild: Callable[..., Any]
    origin: dict[str, Any]


def _sampled(subject: Subject, settings: dict[str, Any], said: Set[str], loading: Loading) -> Prepared:
    return Prepared(subject.made(loading), settings, partial(rebuild, subject), subject.lasting())


def rebuild_parts(
    subject: Subject, parts: Sequence[str] | None, source: str, *, device: str, dtype: str
) -> Parts:
    """Make the parts once more in another process; see `rebuild`."""
    loading = Loading(device=device, dtype=dtype, trust_remote_code=subject.trust_remote_code)  # type: ignore[arg-type]
    return parts_of(*subject.made(loading), parts, source=source)


def _in_parts(subject: Subject, settings: dict[str, Any], said: Set[str], loading: Loading) -> Prepared:
    again = partial(rebuild_parts, subject, settings["parts"])
    parts = settings["parts"]
    origin = {"subject": subject.lasting(), "parts": None if parts is None else list(parts)}
    return Prepared(subject.made(loading), settings, again, origin)


def command(
    verb: Callable[..., Result],
    signature: inspect.Signature | None = None,
    prepare: Callable[[Subject, dict[str, Any], Set[str], Loading], Prepared] = _sampled,
) -> Callable[..., int]:
    """Make a command of a verb whose first three arguments are module, loss and data.

    Args:
        verb: what it does.
        signature: of the command; module, loss and data, then the verb's own settings, when not given.
        prepare: from what is sampled, the other words by name, the names of those that were written and how to load,
            to what is measured.
    """
    shown = signature or _signature(verb)

    def run(*given: Any, **named: Any) -> int:
        bound = shown.bind(*given, **named)
        said = frozenset(bound.arguments)
        bound.apply_defaults()
        words: dict[str, Any] = dict(bound.arguments)
        for word in words.values():
            require_utf8(word)
        loading: Loading = words.pop("loading")
        running: Running = words.pop("running")
        subject = Subject(
            **{name: words.pop(name) for name in Subject._fields if name in words},
            trust_remote_code=loading.trust_remote_code,
        )
        note(f"loading {subject.subject}", quiet=running.quiet)
        ready = prepare(subject, words, said, loading)
        known: dict[str, Any] = {"source": subject.subject, "origin": ready.origin}
        if "mask" in shown.parameters:
            known["mask"] = subject.mask
        whole = partial(verb, *ready.parts, **ready.settings, **known)
        return measured(whole, verb.__name__.replace("_", " "), running, ready.rebuild)

    return dressed(run, verb, shown)


def _signature(verb: Callable[..., Result]) -> inspect.Signature:
    """What is sampled, by place and by name, then the verb's own settings."""
    placed, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    _, _, _, *settings = settings_of(verb)

    def optional(name: str, kind: Any, of: type, words: str) -> inspect.Parameter:
        return inspect.Parameter(
            name, kind, annotation=Annotated[of | None, Parameter(help=words)], default=None
        )

    masked = any(setting.name == "mask" for setting in settings)
    parameters = [
        inspect.Parameter("subject", placed, annotation=Annotated[str, Parameter(help=SUBJECT_HELP)]),
        optional("data", placed, str, DATA_HELP),
        optional("loss", named, str, LOSS_HELP),
        *([optional("mask", named, str, MASK_HELP)] if masked else []),
        optional("context", named, int, CONTEXT_HELP),
        *offered(verb, [setting for setting in settings if setting.name not in ("mask", "source")]),
    ]
    return inspect.Signature(parameters, return_annotation=int)
