"""Colours a colour-blind reader can order, and rows any reader of JSON accepts."""

import json

import numpy as np
import pandas as pd
import pytest

from assay.report.theme import MODES, Mode, config, records


def luminance(colour: str) -> float:
    """Relative luminance of a hex colour, 0 to 1 (WCAG 2)."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", MODES)
def test_sequential_colours_are_ordered_by_lightness_alone(mode: Mode) -> None:
    steps = np.diff([luminance(colour) for colour in config(mode)["range"]["heatmap"]])
    assert (steps < 0).all() if mode == "light" else (steps > 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_text_and_marks_stand_out_from_the_page(mode: Mode) -> None:
    look = config(mode)
    assert contrast(look["axis"]["labelColor"], look["background"]) > 7
    assert contrast(look["axis"]["titleColor"], look["background"]) > 4.5
    for style in ("accent", "cursor"):
        assert contrast(look["style"][style]["color"], look["background"]) > 3


def test_rows_are_plain_json() -> None:
    frame = pd.DataFrame(
        {
            "a": [1.23456789, np.nan, np.inf],
            "b": np.array([1, 2, 3]),
            "c": [True, False, True],
            "d": list("xyz"),
        }
    )
    rows = records(frame)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows[0] == {"a": 1.23457, "b": 1, "c": True, "d": "x"}
    assert rows[1]["a"] is None and rows[2]["a"] is None
