"""How a command ended, and the command line as a shell runs it."""

import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

PROMPT = "The Eiffel Tower is located in the city of"
SUBJECT = "The Eiffel Tower"
ASSAY = (sys.executable, "-c", "import sys; from assay.cli import main; sys.exit(main())")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def in_a_process(*words: object, **options: Any) -> Outcome:
    """A command as a shell runs it."""
    command = [*ASSAY, *map(str, words)]
    ended = subprocess.run(command, capture_output=True, env=ENVIRONMENT, timeout=300, check=False, **options)
    return Outcome(ended.returncode, ended.stdout.decode(), ended.stderr.decode())
