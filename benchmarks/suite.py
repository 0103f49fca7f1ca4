"""The accuracy suite: `assay.learning_coefficient` with nothing chosen, against known truths. ``make suite``.

Every network is one process's work on one thread. Networks already in the results are left as they are, so that a
suite that was stopped goes on; ``--again`` begins anew.
"""

import argparse
import json
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

import assay
from benchmarks.conditions import ROOT, conditions
from benchmarks.suite_cases import Case, cases

RESULTS = ROOT / "benchmarks" / "results" / "suite.json"
PROMISES = {"median error": 0.02, "90th percentile": 0.06, "coverage": 0.85}


def main() -> None:
    asked = _arguments()
    known = (
        {} if asked.again or not asked.results.is_file() else json.loads(asked.results.read_text())["cases"]
    )
    pending = [
        index
        for index, case in enumerate(cases())
        if _key(case) not in known
        and case.parameters <= asked.largest
        and (asked.family is None or case.family in asked.family)
    ]
    with ProcessPoolExecutor(asked.jobs) as pool:
        for done in as_completed([pool.submit(estimate, index) for index in pending]):
            key, row = done.result()
            known[key] = row
            _keep(known, asked.results)
            _say(_line(key, row))
    _keep(known, asked.results)
    for family, figures in summaries(known).items():
        _say(f"{family}: {figures}")


def estimate(index: int) -> tuple[str, dict[str, Any]]:
    """Estimate one network with default settings; runs in a process of its own."""
    torch.set_num_threads(1)
    case = cases()[index]
    module, loss, data, truth, stderr = case.make()
    begun = time.process_time()
    result = assay.learning_coefficient(module, loss, data)
    found, attrs = result.dataset, result.dataset.attrs
    numbers = (
        "llc",
        "llc_stderr",
        "llc_low",
        "llc_high",
        "llc_raw",
        "llc_bias",
        "r_hat",
        "ess",
        "unexplored",
    )
    return _key(case), {
        "family": case.family,
        "name": case.name,
        "parameters": attrs["parameters"],
        "examples": attrs["examples"],
        "truth": truth,
        "truth_stderr": stderr,
        **{name: float(found[name]) for name in numbers},
        **{name: attrs[name] for name in ("burn_in", "draws", "stopped")},
        "step_size": float(found["step_size"][0]),
        "checks": {check.code: check.verdict for check in result.checks if check.verdict != "pass"},
        "cpu_s": time.process_time() - begun,
    }


def summaries(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sum up each family: errors, coverage, and whether every bad case carries a failing check."""
    families = sorted({row["family"] for row in rows.values()})
    return {family: summary([row for row in rows.values() if row["family"] == family]) for family in families}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up some networks. A truth that is itself sampled widens the interval it has to lie in."""
    error = np.array([abs(row["llc"] / row["truth"] - 1) for row in rows])
    covered = [
        abs(row["llc"] - row["truth"])
        <= math.hypot((row["llc_high"] - row["llc_low"]) / 2, 1.96 * row["truth_stderr"])
        for row in rows
    ]
    failing = ["fail" in row["checks"].values() for row in rows]
    return {
        "networks": len(rows),
        "median error": float(np.median(error)),
        "90th percentile": float(np.quantile(error, 0.9)),
        "largest error": float(error.max()),
        "coverage": float(np.mean(covered)),
        "wrong by 10 % without a failing check": int(sum((error > 0.1) & ~np.array(failing))),
        "failing": int(sum(failing)),
        "cpu seconds": float(sum(row["cpu_s"] for row in rows)),
    }


def _key(case: Case) -> str:
    return f"{case.family}: {case.name}"


def _keep(rows: dict[str, dict[str, Any]], path: Path) -> None:
    record = {"conditions": conditions("cpu", 1), "families": summaries(rows), "cases": rows}
    path.write_text(json.dumps(record, indent=1) + "\n")


def _line(key: str, row: dict[str, Any]) -> str:
    error = row["llc"] / row["truth"] - 1
    return f"{key}: {row['llc']:.4g}, truth {row['truth']:.4g}, {error:+.1%}, {row['checks']}, {row['cpu_s']:.0f} s"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time")
    parser.add_argument("--family", action="append", help="only this one; may be given again")
    parser.add_argument("--largest", type=int, default=10**9, help="no network of more parameters")
    parser.add_argument("--again", action="store_true", help="begin anew")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
