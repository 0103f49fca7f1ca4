"""The conditions a figure was taken under: machine, load, versions, commit."""

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent


def conditions(device: str, threads: int) -> dict[str, object]:
    """Return what a reader needs to judge or repeat a figure."""
    changed = _git("status", "--porcelain", "--", "src", "benchmarks", ":!benchmarks/results")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("assay", "torch", "transformers")},
        "commit": _git("rev-parse", "--short=12", "HEAD") + (", with uncommitted changes" if changed else ""),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return f"{told.get('model name', platform.machine())}, model {told.get('model', '?')}"


def _git(*arguments: str) -> str:
    told = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return told.stdout.strip()
