"""The accuracy suite: `assay.learning_coefficient` with nothing chosen, against known truths. ``make suite``.

Every network is one process's work on one thread. What the results already hold of a network, its truth or its
estimate, is left as it is, so that a suite that was stopped goes on; ``--again`` forgets the estimates of the networks
asked for, ``--truths`` their truths. Networks of 1e6 parameters and more are for a GPU:
``python -m benchmarks.suite --family "large deep linear" --device cuda --jobs 1 --results FILE``.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

import assay
from benchmarks.conditions import ROOT, conditions
from benchmarks.suite_cases import LARGE, Case, cases

WRONG = 0.1
"""Off by more than this, an estimate is to carry a failing check."""
SILENT = "wrong by 10 % without a failing check"
RESULTS = ROOT / "benchmarks" / "results" / "suite.json"
PROMISES = {"median error": 0.02, "90th percentile": 0.06, "coverage": 0.85, SILENT: 0}
"""Errors and cases that are wrong in silence are promised to be at most, coverage to be at least."""
TRUTH = ("truth", "truth_stderr", "truth_freedom")
NUMBERS = ("llc", "llc_stderr", "llc_low", "llc_high", "llc_raw", "llc_bias", "r_hat", "ess", "unexplored")

Row = dict[str, Any]


def main() -> None:
    asked = _arguments()
    rows: dict[str, Row] = json.loads(asked.results.read_text())["cases"] if asked.results.is_file() else {}
    pending: list[tuple[int, bool, bool]] = []
    for index, case in enumerate(cases()):
        if not asked.smallest <= case.parameters <= asked.largest or case.family not in asked.family:
            continue
        row = rows.get(_key(case), {})
        parts = (asked.truths or "truth" not in row, asked.again or "llc" not in row)
        if any(parts):
            rows[_key(case)] = {
                name: value for name, value in row.items() if not parts[0 if name in TRUTH else 1]
            }
            pending.append((index, *parts))
    under = conditions(asked.device, 1)
    with ProcessPoolExecutor(asked.jobs) as pool:
        for done in as_completed([pool.submit(work, *each, device=asked.device) for each in pending]):
            key, found = done.result()
            if "llc" in found:
                found["commit"] = under["commit"]
            rows[key] |= found
            _keep(rows, under, asked.results)
            _say(_line(key, rows[key]))
    for family, figures in summaries(rows).items():
        _say(f"{family}: {figures}")


def work(index: int, truth: bool, estimated: bool, *, device: str = "cpu") -> tuple[str, Row]:
    """Find out a network's truth, or estimate it, or both; runs in a process of its own."""
    torch.set_num_threads(1)
    case, row = cases()[index], {}
    if truth:
        oracle = case.oracle()
        row |= dict(zip(TRUTH, (oracle.truth, oracle.stderr, oracle.freedom), strict=True))
    return _key(case), {**row, **(estimate(case, device=device) if estimated else {})}


def estimate(case: Case, *, device: str = "cpu") -> Row:
    """Estimate one network with default settings."""
    module, loss, data = case.make()
    begun = time.process_time()
    result = assay.learning_coefficient(
        module.to(device), loss, tuple(part.to(device) for part in data), n_beta=case.n_beta
    )
    found, attrs = result.dataset, result.dataset.attrs
    return {
        "family": case.family,
        "name": case.name,
        "parameters": attrs["parameters"],
        "examples": attrs["examples"],
        **{name: float(found[name]) for name in NUMBERS},
        **{name: attrs[name] for name in ("burn_in", "draws", "stopped")},
        "step_size": float(found["step_size"][0]),
        "checks": {check.code: check.verdict for check in result.checks if check.verdict != "pass"},
        "cpu_s": time.process_time() - begun,
    }


def complete(rows: Iterable[Row]) -> list[Row]:
    """Give the networks that have both a truth and an estimate."""
    return [row for row in rows if "truth" in row and "llc" in row]


def summaries(rows: dict[str, Row]) -> dict[str, dict[str, Any]]:
    """Sum up each family: errors, coverage, and whether every bad case carries a failing check."""
    whole = complete(rows.values())
    return {
        family: summary([row for row in whole if row["family"] == family])
        for family in sorted({row["family"] for row in whole})
    }


def summary(rows: list[Row]) -> dict[str, Any]:
    """Sum up some networks. Those whose estimate was withheld (NaN) are counted, and are in no other figure.

    One that was withheld without a failing check counts as wrong in silence.
    """
    given = [row for row in rows if math.isfinite(row["llc"])]
    error = np.array([relative_error(row) for row in given] or [math.nan])
    silent = [
        row for row in rows if not relative_error(row) <= WRONG and "fail" not in row["checks"].values()
    ]
    figures = {
        "median error": float(np.median(error)),
        "90th percentile": float(np.quantile(error, 0.9)),
        "coverage": float(np.mean([covered(row) for row in given] or [math.nan])),
        SILENT: len(silent),
    }
    return {
        "networks": len(rows),
        "withheld": len(rows) - len(given),
        **figures,
        "largest error": float(error.max()),
        "failing": sum("fail" in row["checks"].values() for row in rows),
        "kept": {
            name: figures[name] >= limit if name == "coverage" else figures[name] <= limit
            for name, limit in PROMISES.items()
        },
        "cpu seconds": float(sum(row["cpu_s"] for row in rows)),
    }


def relative_error(row: Row) -> float:
    """Give how far an estimate is off, as a share of the truth."""
    return abs(row["llc"] / row["truth"] - 1)


def truth_error(row: Row) -> float:
    """Give half the 95 % interval of a truth that is itself sampled; 0 for a closed form."""
    freedom = math.inf if row["truth_freedom"] is None else row["truth_freedom"]
    return float(student.ppf(0.975, freedom)) * row["truth_stderr"]


def covered(row: Row) -> bool:
    """Tell whether the interval covers the truth; that of the truth widens it."""
    half = (row["llc_high"] - row["llc_low"]) / 2
    return abs(row["llc"] - row["truth"]) <= math.hypot(half, truth_error(row))


def _key(case: Case) -> str:
    return f"{case.family}: {case.name}"


def _keep(rows: dict[str, Row], under: dict[str, object], path: Path) -> None:
    record = {"conditions": under, "families": summaries(rows), "cases": rows}
    path.write_text(json.dumps(record, indent=1) + "\n")


def _line(key: str, row: Row) -> str:
    if not complete([row]):
        return f"{key}: truth {row['truth']:.4g}" if "truth" in row else f"{key}: {row['llc']:.4g}"
    error = row["llc"] / row["truth"] - 1
    return f"{key}: {row['llc']:.4g}, truth {row['truth']:.4g}, {error:+.1%}, {row['checks']}, {row['cpu_s']:.0f} s"


def _arguments() -> argparse.Namespace:
    families = list(dict.fromkeys(case.family for case in cases()))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time")
    parser.add_argument(
        "--family", action="append", choices=families, help="only this one; may be given again"
    )
    parser.add_argument("--smallest", type=int, default=0, help="no network of fewer parameters")
    parser.add_argument("--largest", type=int, default=10**9, help="no network of more")
    parser.add_argument("--again", action="store_true", help="forget the estimates, and begin anew")
    parser.add_argument("--truths", action="store_true", help="forget the truths, and begin anew")
    parser.add_argument("--device", default="cpu", help="of the estimates")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    asked.family = asked.family or [family for family in families if family != LARGE]
    return asked


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
