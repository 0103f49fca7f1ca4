"""Run the benchmark: all cases or those named; figures to benchmarks/results, tables to the docs page."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import assay
from benchmarks.cases import CASES
from benchmarks.comparison import compare
from benchmarks.conditions import ROOT
from benchmarks.landscape import LEARNING, sample
from benchmarks.startup import STARTUPS, start_up
from benchmarks.table import write_tables

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
THREADS = 2
"""Of every side, unless a case says otherwise."""


def main() -> None:
    asked = _arguments()
    needing = {*CASES, *(name for name, case in LEARNING.items() if case.language)}
    model = assay.load(asked.model) if set(asked.cases) & needing else None
    for name in asked.cases:
        if name in LEARNING:
            learning = replace(LEARNING[name], repetitions=asked.repetitions or LEARNING[name].repetitions)
            _say(f"{name}: {learning.title}")
            record = sample(name, learning, model, threads=asked.threads or learning.threads, say=_say)
        elif model is None or name in STARTUPS:
            startup = STARTUPS[name]
            startup = replace(startup, repetitions=asked.repetitions or startup.repetitions)
            _say(f"{name}: {startup.title}")
            record = start_up(name, startup, threads=asked.threads or THREADS, say=_say)
        else:
            case = replace(CASES[name], repetitions=asked.repetitions or CASES[name].repetitions)
            _say(f"{name}: {case.title}")
            record = compare(
                name, case, model, device=asked.device, threads=asked.threads or THREADS, say=_say
            )
        asked.results.mkdir(parents=True, exist_ok=True)
        kind = "cpu" if name in STARTUPS or name in LEARNING else asked.device.partition(":")[0]
        (asked.results / f"{name}-{kind}.json").write_text(json.dumps(record, indent=1) + "\n")
        for found in record["figures"]:
            named = f"{found['quantity']} {found['of']} {found['to']}".strip()
            _say(f"  {named}: {found['value']:.4g}, kept: {found['kept']}")
    if asked.results == RESULTS:
        write_tables(RESULTS, PAGE)


def _arguments() -> argparse.Namespace:
    known = [*CASES, *STARTUPS, *LEARNING]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "cases", nargs="*", metavar="case", default=known, help=f"of {', '.join(known)}; llc for all of these"
    )
    parser.add_argument("--device", default="cpu", help="of every side; start-up is always the CPU's")
    parser.add_argument("--threads", type=int, help="of every side, instead of each case's own")
    parser.add_argument("--repetitions", type=int, help="instead of each case's own")
    parser.add_argument("--model", default="smollm2", help="anything `assay.load` takes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="elsewhere, the page is left as it is")
    asked = parser.parse_args()
    if "llc" in asked.cases:  # all of them
        asked.cases = [*LEARNING, *(name for name in asked.cases if name != "llc" and name not in LEARNING)]
    if unknown := set(asked.cases) - set(known):
        parser.error(f"no case is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return asked


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
