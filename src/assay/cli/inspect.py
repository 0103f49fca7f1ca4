"""Commands that look at models and at runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from assay.cli.options import RUNNING, Flag, Json, Loading
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
from assay.errors import BadInput

if TYPE_CHECKING:
    from assay.models.doctor import Examination
    from assay.runs.compare import Comparison

# What commands do is imported when they do it: their --help stays as quick as that of `assay` itself.

AS_IT_IS = Loading()
Format = Literal["html", "pdf", "svg", "png", "csv"]


def doctor(model: str, *, loading: Loading = AS_IT_IS, as_json: Json = False, quiet: Flag = False) -> int:
    """Examine a model: is it fit to be measured?

    Compares it with the bare module, padded prompts with prompts alone, float32 with float64, partial with
    full forwards; lists its sites; weighs and times a forward. Exit code 1 when a check fails.

    Args:
        model: smollm2 (the embedded one), a folder, a .gguf file or a hub id.
        loading: How the model is loaded.
        as_json: Write JSON to stdout, and nothing else.
        quiet: Only the checks that do not pass.
    """
    from assay.models.doctor import doctor as examine

    note(f"loading {model}", quiet=quiet)
    loaded = loading.load(model)
    note("examining it", quiet=quiet)
    found = examine(loaded)
    if as_json:
        print_json(found)
    else:
        checks = [check for check in found.checks if not quiet or check.verdict != "pass"]
        say([*check_lines(checks), *([] if quiet else _figures(found))])
    return 0 if found.healthy else 1


def _figures(found: "Examination") -> list[str]:
    figures = found.figures
    layers = int(figures["layers"])
    everywhere = [name for name, count in found.sites.items() if count in (1, layers)]
    forward = f"a forward of {figures['tokens']:.0f} tokens"
    rows = [
        ("size", f"{layers} layers, {figures['parameters'] / 1e6:.4g} M parameters"),
        (
            "memory",
            f"weights {amount(figures['weights_bytes'])}, {forward} {amount(figures['forward_bytes'])} more",
        ),
        (
            "speed",
            f"{forward} {duration(figures['forward_seconds'])}, {figures['tokens_per_second']:.0f} tokens/s",
        ),
        ("sites", " ".join(everywhere)),
        *(
            ("", f"{site} in {n} of {layers} layers")
            for site, n in found.sites.items()
            if site not in everywhere
        ),
        *(
            ("" if index else "absent", f"{site}: {why}")
            for index, (site, why) in enumerate(found.absent.items())
        ),
    ]
    return columns([(name, printable(text)) for name, text in rows])


def report(
    run: list[Path],
    /,
    *,
    out: Annotated[Path | None, Parameter(group=RUNNING)] = None,
    format: Annotated[tuple[Format, ...], Parameter(consume_multiple=True)] = ("html",),
    as_json: Json = False,
) -> int:
    """Write the report of one or several runs, or their figures and tables.

    Args:
        run: Run folders; several become sections of one page.
        out: For html the file to write, by default report.html in the run folder (of several runs, here); for
            other formats a folder, by default the figures folder of each run.
        format: One or several: html is the page; pdf, svg, png and csv are a file for each figure.
        as_json: Write JSON to stdout, and nothing else.

    Raises:
        BadInput: --out for a page and for a folder of figures at once.
    """
    from assay.report import save_figures, write_report
    from assay.runs.result import Result

    results = [Result.load(folder) for folder in run]
    drawn = [kind for kind in format if kind != "html"]
    if out is not None and drawn and "html" in format:
        raise BadInput(
            f"--out {out} cannot be both a page and a folder of figures: leave it out, or ask twice."
        )
    files: list[Path] = []
    for folder, result in zip(run, results, strict=True):
        if drawn:
            files += save_figures(result, _figures_folder(out, folder, alone=len(run) == 1), drawn)
    if "html" in format:
        page = out or (run[0] if len(run) == 1 else Path()) / "report.html"
        files.append(write_report(results, page))
    if as_json:
        print_json({"files": [file.resolve() for file in files]})
    else:
        say(map(path_text, files))
    return 0


def _figures_folder(out: Path | None, run: Path, *, alone: bool) -> Path:
    """Where the figures of a run go, so that those of several runs do not overwrite each other."""
    if out is None:
        return run / "figures"
    return out if alone else out / run.resolve().name


def compare(a: Path, b: Path, *, level: float = 0.95, as_json: Json = False) -> int:
    """Two runs side by side: paired differences (B - A), and what else differs.

    Args:
        a: The first run folder.
        b: The second.
        level: Level of the intervals of the differences.
        as_json: Write JSON to stdout, and nothing else.
    """
    from assay.runs.compare import compare as paired
    from assay.runs.result import Result

    found = paired(Result.load(a), Result.load(b), level=level)
    if as_json:
        print_json(
            {
                "settings": found.settings,
                "versions": found.versions,
                "skipped": found.skipped,
                "level": found.level,
                "summary": found.summary().to_dict("records"),
                "differences": dataset_document(found.differences),
            }
        )
    else:
        say(_compared(found))
    return 0


def _compared(found: "Comparison") -> list[str]:
    summary = found.summary()
    rows = [("variable", "cells", "equal", "mean", "largest", "apart")]
    for line in summary.to_dict("records"):
        apart = "" if line["apart"] is None else str(line["apart"])
        figures = (
            str(line["cells"]),
            str(line["equal"]),
            f"{line['mean']:.3g}",
            f"{line['largest']:.3g}",
            apart,
        )
        rows.append((str(line["variable"]), *figures))
    differing = [("", name, *map(repr, pair)) for name, pair in {**found.settings, **found.versions}.items()]
    return [
        *(columns(rows) if len(rows) > 1 else ["The two runs share no numbers."]),
        *(["What differs besides:", *map(printable, columns(differing))] if differing else []),
        *(printable(f"{name} was not compared: {reason}") for name, reason in found.skipped.items()),
    ]


def rerun(
    run: Path,
    *,
    out: Annotated[Path | None, Parameter(group=RUNNING)] = None,
    as_json: Json = False,
    quiet: Flag = False,
) -> int:
    """Repeat a run from its record, and tell whether the same numbers come out.

    Exit code 1 when they are not the same to the last bit. A run of FILE.py:FUNCTION calls that function again.

    Args:
        run: The run folder.
        out: Folder of run folders for the new run; the one the run lies in by default.
        as_json: Write JSON to stdout, and nothing else.
        quiet: No progress.
    """
    from assay.runs.folder import read_manifest
    from assay.runs.rerun import rerun as repeat

    record = read_manifest(run)
    model = None
    if "origin" in record:
        from assay.cli.trajectory import made_again

        note(f"loading {record['model']['source']}", quiet=quiet)
        model = made_again(record)
    with shown("repeating", quiet=quiet) as progress:
        found = repeat(run, model=model, progress=progress, out=out)
    page = found.result.report()
    if as_json:
        print_json(
            {
                "identical": found.identical,
                "differing": found.differing,
                "run": found.result.path,
                "report": page.resolve(),
            }
        )
    else:
        verdict = (
            "The same to the last bit." if found.identical else f"Differing: {', '.join(found.differing)}"
        )
        say([printable(verdict), path_text(page)])
    return 0 if found.identical else 1


def runs(folder: Path = Path("runs"), *, as_json: Json = False) -> int:
    """List the runs below a folder, the latest first.

    Args:
        folder: The folder that was given as --out.
        as_json: Write JSON to stdout, and nothing else.
    """
    from assay.runs.listing import list_runs

    found = list_runs(folder)
    if as_json:
        print_json(found)
        return 0
    rows = [("started", "status", "units", "measurement", "model", "run")]
    for run in found:
        units = f"{run.units_done}/{run.units}"
        rows.append((run.started[:19], run.status, units, run.measurement, run.source, str(run.path)))
    say(map(printable, columns(rows)) if found else [f"No runs below {printable(str(folder))}."])
    return 0
