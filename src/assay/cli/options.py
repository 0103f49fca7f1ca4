"""What commands have in common: options of a run, and texts that may come from a file or from stdin."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from cyclopts import Group, Parameter, validators

from assay.errors import BadInput

if TYPE_CHECKING:
    from assay.models.model import Model

RUNNING = Group("Running", sort_key=10)

Dtype: TypeAlias = Literal["float32", "float64", "bfloat16", "float16"]
Flag: TypeAlias = Annotated[bool, Parameter(group=RUNNING, negative="", show_default=False)]
Json: TypeAlias = Annotated[bool, Parameter(name="--json", group=RUNNING, negative="", show_default=False)]


@Parameter(name="*", group=RUNNING)
@dataclass(frozen=True, kw_only=True)
class Loading:
    """How the model is loaded.

    Attributes:
        device: Where the weights go: cpu, cuda, cuda:1, mps.
        dtype: What the weights are converted to.
        trust_remote_code: Run Python code that comes with the model.
        norms: identity for a model whose norms are switched off by a huge epsilon: scale them back and take them out.
    """

    device: str = "cpu"
    dtype: Dtype = "float32"
    trust_remote_code: Flag = False
    norms: Literal["kept", "identity"] = "kept"

    def load(self, source: str) -> "Model":
        """Load a model; what transformers says on the way is for programmers, and kept from the terminal."""
        from transformers.utils import logging as transformers_logging

        from assay.models.loading import load

        transformers_logging.set_verbosity_error()
        return load(
            source,
            device=self.device,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            norms=self.norms,
        )


@Parameter(name="*", group=RUNNING)
@dataclass(frozen=True, kw_only=True)
class Running:
    """How a measurement is run; none of it changes a number.

    Attributes:
        out: Folder of run folders; the same command continues, or just reads, the run it finds there.
        processes: How many processes share the work; each holds its own copy of the weights.
        dry_run: Tell units, time and memory, measuring only the unit of middle cost.
        as_json: Write JSON to stdout, and nothing else.
        quiet: No progress and no summary, only where the report is.
    """

    out: Path = Path("runs")
    processes: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1
    dry_run: Flag = False
    as_json: Json = False
    quiet: Flag = False


def require_utf8(argument: object) -> None:
    """Refuse words whose bytes are no UTF-8, which no tokenizer could read.

    Raises:
        BadInput: naming the argument.
    """
    words = [argument] if isinstance(argument, str) else argument if isinstance(argument, tuple) else []
    for word in words:
        if isinstance(word, str) and any("\ud800" <= char <= "\udfff" for char in word):
            raise BadInput(f"The argument {word!r} is not UTF-8; set the terminal's encoding, or pass @FILE.")


def text_of(argument: str) -> str:
    """Give the text that an argument stands for.

    Args:
        argument: the text itself; ``@file`` for a file's text; ``-`` for stdin; ``@@...`` for a text that
            begins with ``@``. One line end at the end of a file or of stdin is not part of the text.

    Raises:
        BadInput: the file cannot be read, or is not UTF-8.
    """
    if argument.startswith("@@"):
        return argument[1:]
    if argument != "-" and not argument.startswith("@"):
        return argument
    path = argument.removeprefix("@")
    name = "stdin" if argument == "-" else repr(path)
    try:
        content = sys.stdin.buffer.read() if argument == "-" else Path(path).expanduser().read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise BadInput(
            f"The text file {name} cannot be read: {error.strerror}. A text that begins with @ is written @@."
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"The text in {name} is not UTF-8: byte {error.start} cannot be decoded.") from error
    return text.removesuffix("\n").removesuffix("\r")
