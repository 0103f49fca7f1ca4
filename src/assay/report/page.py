"""One offline HTML page from one or several results: checks, findings, linked figures, tables, manifest."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert

from assay.errors import BadInput
from assay.report.charts.grid import ORIENTATIONS
from assay.report.contents import Reportable, figures_of, findings_of
from assay.report.figure import Figure
from assay.report.text import visible
from assay.report.theme import MODES, config, plain_values

_SCRIPTS = ("cursor.js", "views.js", "figure.js", "readout.js", "page.js")
_EXPORTS = "window.vegaEmbed = vegaEmbed;"
_VERDICTS = ("fail", "warn", "pass")
_UNWRITTEN = {"units", "attempts"}  # long, and of no use to a reader of the page; the run folder has them


def write_report(results: Reportable | Sequence[Reportable], path: str | Path) -> Path:
    """Write one page that needs nothing else: no network, no server, no library.

    Args:
        results: one result or several; each becomes a section with its own cursor.
        path: file to write; folders on the way are made. It is replaced at once, never half written.

    Returns:
        The path of the page.

    Raises:
        BadInput: when there is no result, or the path is a folder.
    """
    several = list(results) if isinstance(results, Sequence) else [results]
    target = Path(path)
    if not several:
        raise BadInput("There is no result to report: pass one result or a list with at least one.")
    if target.is_dir():
        raise BadInput(f"{target} is a folder; pass the file to write, for example {target / 'report.html'}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    unfinished.write_text(_page(several), encoding="utf-8")
    os.replace(unfinished, target)
    return target


def _page(results: Sequence[Reportable]) -> str:
    sections = [_section(result) for result in results]
    models = sorted({str(result.dataset.attrs.get("model", "")) for result in results} - {""})
    payload = {
        "themes": {mode: config(mode) for mode in MODES},
        "sections": [section["payload"] for section in sections],
    }
    return _template().render(
        title=" · ".join(dict.fromkeys(section["heading"] for section in sections)),
        models=models,
        sections=sections,
        payload=embedded_json(payload),
        style=_asset("page.css"),
        vega=_vega(),
        script="\n".join(map(_asset, _SCRIPTS)),
    )


def _section(result: Reportable) -> dict[str, Any]:
    figures = figures_of(result)
    linked = [figure for figure in figures if figure.linked]
    tokens = _tokens(linked)
    tables: dict[str, Any] = {}
    manifest = {key: value for key, value in result.manifest.items() if key not in _UNWRITTEN}
    return {
        "heading": str(result.measurement.name).replace("_", " ").capitalize(),
        "checks": sorted(result.checks, key=lambda check: _VERDICTS.index(check.verdict)),
        "findings": findings_of(result),
        "strip": _strip(tokens, linked),
        "figures": figures,
        "manifest": _lines(manifest),
        "payload": {
            "tokens": tokens,
            "blocks": sorted({int(block) for figure in linked for block in figure.frame["block"]}),
            "figures": [_embedded(figure, tables) for figure in figures],
            "tables": tables,
        },
    }


def _tokens(linked: Sequence[Figure]) -> list[str]:
    """Give the text of every position that any linked figure shows."""
    texts: dict[int, str] = {}
    for figure in linked:
        named = figure.frame.drop_duplicates("position")
        texts |= {
            int(place): str(text) for place, text in zip(named["position"], named["token"], strict=True)
        }
    return [texts[place] for place in sorted(texts)]


def _strip(tokens: Sequence[str], linked: Sequence[Figure]) -> list[dict[str, Any]]:
    """Give the passage as buttons: token text, surprisal in nats, and a shade from 0 to 1 for it."""
    surprisal = next((figure.surprisal for figure in linked if figure.surprisal), [None] * len(tokens))
    largest = max((nats for nats in surprisal if nats is not None), default=0.0) or 1.0
    return [
        {"text": token, "nats": nats, "shade": None if nats is None else round(max(nats, 0.0) / largest, 3)}
        for token, nats in zip(tokens, surprisal, strict=False)
    ]


def _embedded(figure: Figure, tables: dict[str, Any]) -> dict[str, Any]:
    """Write a figure for the page's script; its rows go to the tables, where each variant finds them."""
    tables[figure.name] = {
        str(name): plain_values(figure.frame[name].to_numpy()) for name in figure.frame.columns
    }
    ways: Sequence[Mapping[str, Any]] = (
        [{"orientation": way} for way in ORIENTATIONS] if figure.linked else [{}]
    )
    return {
        "name": figure.name,
        "linked": figure.linked,
        "variants": {
            label: [_spec(figure.draw(**options, **way), tables) for way in ways]
            for label, options in figure.variants.items()
        },
        "bars": [[bar.label, bar.value, bar.low, bar.high] for bar in figure.readout.bars],
        "unit": figure.readout.unit,
        "facts": list(figure.readout.facts.items()),
    }


def _spec(chart: Any, tables: dict[str, Any]) -> dict[str, Any]:
    """Give a chart's specification without theme and heading, which the page sets, and without its rows."""
    spec = chart.to_dict(validate=False)
    for name, rows in spec.get("datasets", {}).items():
        tables[name] = {key: [row.get(key) for row in rows] for key in rows[0]} if rows else {}
    dropped = {"$schema", "config", "datasets", "title"}
    return {key: value for key, value in spec.items() if key not in dropped}


def _lines(manifest: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Write nested settings as lines of dotted names, for a table."""
    lines: list[tuple[str, str]] = []
    for key, value in manifest.items():
        if isinstance(value, Mapping) and value:
            lines += _lines(value, f"{prefix}{key}.")
        else:
            lines.append((f"{prefix}{key}", visible(str(value), limit=400, space=" ")))
    return lines


def embedded_json(value: object) -> str:
    """Write JSON that cannot end the script element it stands in, nor be read as markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@functools.cache
def _vega() -> str:
    """Give Vega, Vega-Lite and Vega-Embed as one script, in the version the charts are written for."""
    version = ".".join(alt.VEGALITE_VERSION.split(".")[:2])
    bundle = vl_convert.javascript_bundle(_EXPORTS, vl_version=version)
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(
        (resources.files("assay.report") / "template.html.j2").read_text(encoding="utf-8")
    )


def _asset(name: str) -> str:
    return (resources.files("assay.report") / "assets" / name).read_text(encoding="utf-8")
