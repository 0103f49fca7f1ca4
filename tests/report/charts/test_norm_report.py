"""The norm report's charts and sentences say what their dataset says."""

import json

import numpy as np
import pytest
import vl_convert
import xarray as xr

from assay.report.charts import norm_report

WAYS = ("fold", "scale", "remove")


def synthetic(*, inputs: int = 5, broken: bool = False) -> xr.Dataset:
    rng = np.random.default_rng(0)
    models, norms, positions = ("original", *WAYS), ("ln1.0", "ln2.0", "final_norm"), 6
    difference = np.array([[1e-5, 1e-13], [2.5, 2.5], [9.0, 9.0]])
    kl = np.array([0.0, 0.25, 3.0])
    if broken:
        difference[2], kl[2] = np.nan, np.nan
    spread = np.full(3, 0.05 if inputs > 1 else np.nan)
    loss = np.array([2.0, 2.0, 2.3, np.nan if broken else 5.0])
    quantiles = loss[:, None] * np.array([0.8, 1.5, 2.5, 4.0])
    scales = rng.uniform(1, 2, (len(norms), positions))
    scales[1, 0] = 300.0
    return xr.Dataset(
        {
            "logit_difference": (("way", "precision"), difference),
            "exact": ("way", np.array([True, False, False])),
            "kl_from_original": ("way", kl),
            "kl_from_original_low": ("way", kl - spread),
            "kl_from_original_high": ("way", kl + spread),
            "loss_difference": ("way", kl + 0.05),
            "top1_agreement": ("way", np.array([1.0, 0.9, 0.2])),
            "loss": ("model", loss),
            "loss_low": ("model", loss - 0.1),
            "loss_high": ("model", loss + 0.1),
            "loss_quantile": (("model", "quantile"), quantiles),
            "loss_quantile_low": (("model", "quantile"), quantiles - 0.1),
            "loss_quantile_high": (("model", "quantile"), quantiles + 0.1),
            "baseline_kl_from_original": ((), 1.75),
            **{
                f"norm_scale{part}": (("norm", "position"), scales + shift)
                for part, shift in {"": 0, "_stderr": 0, "_low": -0.1, "_high": 0.1}.items()
            },
        },
        coords={
            "way": list(WAYS),
            "precision": ["own", "float64"],
            "model": list(models),
            "quantile": [0.5, 0.9, 0.99, 1.0],
            "norm": list(norms),
            "layer": ("norm", [0, 0, -1]),
            "position": np.arange(positions),
        },
        attrs={"inputs": inputs, "tokens": positions, "special": [0], "kind": "LayerNorm", "fixed_norms": 0},
    )


def test_the_tables_have_a_row_for_everything() -> None:
    dataset = synthetic()
    ways = norm_report.way_frame(dataset)
    row = ways.query("way == 'scale' and precision == 'float64'").iloc[0]
    assert (row["difference"], row["kl"], row["baseline"], bool(row["exact"])) == (2.5, 0.25, 1.75, False)
    assert ways.query("way == 'fold'")["baseline"].isna().all()
    losses = norm_report.loss_frame(dataset)
    assert len(losses) == 4 * 5
    assert losses.query("model == 'scale' and quantile == '99%'")["loss"].item() == pytest.approx(2.3 * 2.5)
    scales = norm_report.scale_frame(dataset.transpose("position", "norm", ...))
    assert scales.query("norm == 'ln2.0' and position == 0")["scale"].item() == 300.0


def test_zero_is_drawn_on_a_logarithmic_axis() -> None:
    least = norm_report.way_frame(synthetic()).query("way == 'fold'")["kl"]
    assert ((least > 0) & (least < 1e-15)).all()


def test_what_gives_no_finite_logits_is_said_where_its_point_would_be() -> None:
    whole, broken = (
        vl_convert.vegalite_to_svg(norm_report.chart(synthetic(broken=b)).to_dict()) for b in (False, True)
    )
    assert "no finite logits" not in whole
    assert broken.count("no finite logits") == 1
    assert ">remove<" in whole and ">remove<" in broken


def test_one_input_and_no_baseline_draw_no_intervals() -> None:
    dataset = synthetic(inputs=1).drop_vars("baseline_kl_from_original")
    marks = json.dumps(norm_report.chart(dataset).to_dict()["vconcat"][0])
    assert '"rule"' not in marks and "datum.baseline" not in marks
    assert '"rule"' in json.dumps(norm_report.chart(synthetic()).to_dict()["vconcat"][0])


def test_every_figure_can_be_drawn() -> None:
    figures = norm_report.figures(synthetic())
    assert [figure.name for figure in figures] == ["norm_ways", "norm_losses", "norm_scales"]
    assert "5 inputs of 6 tokens" in figures[0].caption and "LayerNorm" in figures[2].caption
    for figure in figures:
        vl_convert.vegalite_to_svg(figure.chart().to_dict())


def test_the_findings_name_what_is_exact_what_it_costs_and_the_first_position() -> None:
    texts = [finding.text for finding in norm_report.findings(synthetic())]
    assert texts[0] == "Exact for this model, up to rounding: fold."
    assert "0.25 nats a token from itself [0.2, 0.3], its loss +0.3 nats" in texts[1]
    assert texts[2].startswith("ln2.0 divides by 300 at position 0")
    nothing = synthetic()
    nothing["exact"][0] = False
    nothing["kl_from_original"][1] = np.nan
    texts = [finding.text for finding in norm_report.findings(nothing)]
    assert texts[:2] == [
        "Nothing that was tried is exact here.",
        "With one constant a norm the model breaks.",
    ]
