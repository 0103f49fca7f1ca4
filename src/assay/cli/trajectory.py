"""The command that follows a training: checkpoints in folders, or an experiment that is trained on the spot."""

import inspect
from collections.abc import Mapping, Set
from functools import partial
from typing import Annotated, Any, NamedTuple

from cyclopts import Parameter, validators

from assay.cli import landscape
from assay.cli.landscape import (
    CONTEXT_HELP,
    DATA_HELP,
    LOSS_HELP,
    MASK_HELP,
    Prepared,
    Subject,
    command,
    lasting,
)
from assay.cli.measure import offered, settings_of
from assay.cli.options import Loading
from assay.errors import BadInput
from assay.landscape.checkpoints import Course, course
from assay.landscape.experiments import EXPERIMENTS, experiment
from assay.landscape.losses import loss_name
from assay.landscape.parts import Parts
from assay.landscape.target import Target
from assay.landscape.trajectory import trajectory as verb

SUBJECT_HELP = (
    f"An experiment ({', '.join(EXPERIMENTS)}), trained on the spot; or FILE.py:FUNCTION, which returns module, loss "
    "and data; or a language model, with --data."
)
FOLDERS_HELP = "Folders of safetensors named by step, one for each run; none for an experiment."
RUNS_HELP = "Networks that an experiment trains, each from a seed of its own."


class Training(NamedTuple):
    """What is followed, as the command line says it; a process of its own can make it from this alone.

    Attributes:
        subject: an experiment, or what has checkpoints.
        folders: of checkpoints; none for an experiment.
        sampled: name of the loss that is sampled, where it is another one.
        runs: of an experiment.
        seed: of an experiment's training.
    """

    subject: Subject
    folders: tuple[str, ...]
    sampled: str | None
    runs: int
    seed: int

    def made(self, loading: Loading) -> tuple[tuple[Any, Any, Any, Any], dict[str, Any]]:
        """Give module, loss, data and checkpoints, and the settings that come with them.

        Raises:
            BadInput: folders beside an experiment, or none beside something else.
        """
        given = {"sampled": self.sampled} if self.sampled is not None else {}
        if self.subject.subject in EXPERIMENTS:
            if self.folders or self.subject.data is not None:
                raise BadInput(
                    f"{self.subject.subject} trains its own networks: leave folders and --data out."
                )
            ready = experiment(self.subject.subject, runs=self.runs, seed=self.seed)
            loss = self.subject.loss or ready.loss
            return (ready.module, loss, ready.data, ready.checkpoints), {**ready.settings, **given}
        if not self.folders:
            raise BadInput(
                f"{self.subject.subject!r} is no experiment ({', '.join(EXPERIMENTS)}), so name the folder of its "
                "checkpoints: safetensors named by step, as `assay.watch` writes them."
            )
        return (*self.subject.made(loading), list(self.folders)), given

    def lasting(self) -> dict[str, Any]:
        """Give the same for a record: with paths that are good from any folder."""
        return {
            **self._asdict(),
            "folders": [*map(lasting, self.folders)],
            "subject": {**self.subject.lasting(), "subject": self.subject.subject}
            if self.subject.subject in EXPERIMENTS
            else self.subject.lasting(),
        }


def rebuild(training: Training, source: str, *, device: str, dtype: str) -> Course:
    """Make the course once more in another process; see `LocalProcesses`."""
    trust = training.subject.trust_remote_code
    loading = Loading(device=device, dtype=dtype, trust_remote_code=trust)  # type: ignore[arg-type]
    parts, settings = training.made(loading)
    return course(*parts, sampled=settings.get("sampled"), mask=training.subject.mask, source=source)


def made_again(record: Mapping[str, Any]) -> Target | Course | Parts:
    """Make what a command measured from what it was given.

    Args:
        record: of a run that says it, as ``origin``.

    Raises:
        BadInput: what was given is no longer there, or has another loss.
    """
    origin, model, settings = record["origin"], record["model"], record["settings"]
    kept = {"source": model["source"], "device": model["device"], "dtype": model["dtype"]}
    if "folders" in origin:
        words: dict[str, Any] = {**origin, "folders": tuple(origin["folders"])}
        words["subject"] = landscape.Subject(**origin["subject"])
        made: Target | Course | Parts = rebuild(Training(**words), **kept)
        losses = {"loss": made.plain.loss, "sampled": made.sampled or made.plain.loss}
    elif "parts" in origin:
        made = landscape.rebuild_parts(landscape.Subject(**origin["subject"]), origin["parts"], **kept)
        losses = {"loss": made.whole.loss}
    else:
        made = landscape.rebuild(landscape.Subject(**origin), **kept)
        losses = {"loss": made.loss}
    for name, loss in losses.items():
        if loss_name(loss) != settings[name]:
            raise BadInput(
                f"the run's {name} was {settings[name]!r}, {model['source']} now gives {loss_name(loss)!r}: it was "
                "edited since, so that other numbers would come out."
            )
    return made


def _signature() -> inspect.Signature:
    """What is followed, by place and by name, then the verb's own settings."""
    placed, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    several = inspect.Parameter.VAR_POSITIONAL
    own = {"module", "loss", "data", "checkpoints", "mask", "source", "sampled"}
    counted = Annotated[int, Parameter(help=RUNS_HELP, validator=validators.Number(gte=1))]

    def optional(name: str, of: type, words: str) -> inspect.Parameter:
        annotation = Annotated[of | None, Parameter(help=words)]
        return inspect.Parameter(name, named, annotation=annotation, default=None)

    parameters = [
        inspect.Parameter("subject", placed, annotation=Annotated[str, Parameter(help=SUBJECT_HELP)]),
        inspect.Parameter("folders", several, annotation=Annotated[str, Parameter(help=FOLDERS_HELP)]),
        inspect.Parameter("runs", named, annotation=counted, default=1),
        optional("data", str, DATA_HELP),
        optional("loss", str, LOSS_HELP),
        optional("sampled", str, "The loss that is sampled, by name, where it is another one."),
        optional("mask", str, MASK_HELP),
        optional("context", int, CONTEXT_HELP),
        *offered(verb, [setting for setting in settings_of(verb) if setting.name not in own]),
    ]
    return inspect.Signature(parameters, return_annotation=int)


def _prepared(subject: Subject, words: dict[str, Any], said: Set[str], loading: Loading) -> Prepared:
    training = Training(subject, words.pop("folders"), words.pop("sampled"), words.pop("runs"), words["seed"])
    parts, settings = training.made(loading)
    # settings of one's own go before those of an experiment
    own = {name: value for name, value in words.items() if name in said or name not in settings}
    return Prepared(parts, {**settings, **own}, partial(rebuild, training), training.lasting())


trajectory = command(verb, _signature(), _prepared)
