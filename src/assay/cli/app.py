"""Which commands there are, and how each may end: done, found wanting, refused, or stopped.

A command is found by name and imported when it is used, so its summary is written here.
"""

import difflib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import App, CycloptsError, Group, Parameter, UnknownCommandError

import assay
from assay.cli.output import print_error
from assay.errors import BadInput

DONE, FOUND_WANTING, REFUSED, STOPPED = 0, 1, 2, 130
"""Exit codes: as asked; a check failed or memory ran out; the input is wrong; stopped by Ctrl-C."""

MEASURE = {
    "lens": "Logit lens: what each layer would say if the model stopped there.",
    "trace": "Causal trace: which states carry a fact about a subject to the answer.",
    "average-trace": "Average causal trace: where, over many facts, restored states bring back the answer.",
    "neurons": "Neuron importance: which neurons, layers and tokens the answer rests on.",
    "ablate": "Ablation: what is lost when one head, MLP, layer or neuron at a time carries no information.",
    "patch": "Patching: which places, taken from one prompt's run, turn another's answer.",
    "attribute": "Attribution patching: what patching each node would do, to first order, beside exact effects.",
    "path": "Path patching: what one part tells another of what makes two prompts differ.",
    "faithfulness": "Faithfulness: how much of what a model does a circuit does alone, beside random sets.",
    "dla": "Direct logit attribution: what each component writes straight into a logit.",
    "norms": "Norms: what becomes of a model when they are folded, frozen, fixed or removed, and what is exact.",
    "horizon": "Layer horizon: how many layers back a model reads what was written.",
    "paths": "Layer paths: how many blocks a signal must pass, and how much short paths carry.",
    "stages": "Stages of inference: what each layer would say, its prediction and suppression neurons.",
    "surgery": "Layer surgery: what is lost when layers are left out, exchanged, shuffled or run side by side.",
    "survey": "Lens, trace and importances of one text, side by side in one report.",
}
WEIGHTS = {
    "llc": "Local learning coefficient: how degenerate the minimum is at which training ended.",
    "calibrate": "Calibration plane: the learning coefficient over step size and temperature, the plateau marked.",
    "refined": "Refined learning coefficients: that of each part, the other weights held.",
}
TRAININGS = {
    "trajectory": "Trajectory: loss and learning coefficient over training, and whether they change together.",
}
WORDS = (
    "MODEL is smollm2 (the embedded one), zoo:copier or zoo:induction (small ones of known circuit), a folder, a .gguf "
    "file or a hub id. A text may be @FILE, or - for stdin."
)
FOLLOWED = (
    "SUBJECT is an experiment, trained on the spot, or FILE.py:FUNCTION with FOLDERS of its checkpoints: safetensors "
    "named by step, as `assay.watch` writes them."
)
SAMPLED = (
    "SUBJECT is FILE.py:FUNCTION, where the function returns module, loss and data; or a language model (smollm2, a "
    "folder, a .gguf file, a hub id) with a file of text or of tokens as DATA."
)
INSPECT = {
    "doctor": "Examine a model: is it fit to be measured?",
    "report": "Write the report of one or several runs, or their figures and tables.",
    "compare": "Two runs side by side: paired differences, and what else differs.",
    "rerun": "Repeat a run from its record, and tell whether the same numbers come out.",
    "runs": "List the runs below a folder.",
}


def _app() -> App:
    app = App(
        name="assay",
        help=(assay.__doc__ or "").partition("\n")[0],
        version=assay.__version__,
        default_parameter=Parameter(negative_iterable=()),  # no --empty-kinds
        suppress_keyboard_interrupt=False,  # what is kept is to be said
    )
    measure, inspect, other = (
        Group(name, sort_key=place) for place, name in enumerate(("Measure", "Inspect", "Other"))
    )
    for name, summary in MEASURE.items():
        home = f"assay.cli.measure:{name.replace('-', '_')}"
        app.command(home, name=name, help=f"{summary}\n\n{WORDS}", group=measure)
    for name, summary in WEIGHTS.items():
        app.command(f"assay.cli.landscape:{name}", name=name, help=f"{summary}\n\n{SAMPLED}", group=measure)
    for name, summary in TRAININGS.items():
        app.command(f"assay.cli.trajectory:{name}", name=name, help=f"{summary}\n\n{FOLLOWED}", group=measure)
    for name, summary in INSPECT.items():
        app.command(f"assay.cli.inspect:{name}", name=name, help=summary, group=inspect)
    for flag in ("--help", "--version"):
        app[flag].group = other
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after ``assay``; those of this process by default.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        code = _app()(words, exit_on_error=False, print_error=False, result_action="return_value")
    except UnknownCommandError:  # its own message would import every command to name them
        print_error(_no_command(words[0]), as_json=as_json)
        return REFUSED
    except CycloptsError as error:
        print_error(f"{error} See `assay {words[0]} --help`.", as_json=as_json)
        return REFUSED
    except BadInput as error:
        print_error(str(error), as_json=as_json)
        return REFUSED
    except MemoryError as error:
        print_error(f"Out of memory: {error}", as_json=as_json)
        return FOUND_WANTING
    except KeyboardInterrupt as error:
        print_error(f"Stopped. {error}".strip(), as_json=as_json)
        return STOPPED
    except BrokenPipeError:
        _leave_quietly()
    return code if isinstance(code, int) else DONE


def _no_command(word: str) -> str:
    known = [*MEASURE, *WEIGHTS, *TRAININGS, *INSPECT]
    near = difflib.get_close_matches(word, known, n=1)
    guess = f" Did you mean {near[0]}?" if near else ""
    kind = "option" if word.startswith("-") else "command"
    return f"There is no {kind} {word!r}.{guess} Commands: {', '.join(known)}. See `assay --help`."


def _leave_quietly() -> NoReturn:
    """End without the message Python prints when whoever read our output has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(FOUND_WANTING)
