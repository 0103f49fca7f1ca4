"""Make the documentation's pictures, each from a real run: ``python docs/pictures.py [NAME...]``, or ``make pictures``.

A name is that of the file, without its folder and ending; without names all but the longest are made, on one core in
about an hour.
"""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import activation_pictures as activations
import altair as alt
import circuit_pictures as circuits
import landscape_pictures as landscape
import sampler_pictures as samplers
import site_pictures as sites

import assay
from assay.models.model import Model

HERE = Path(__file__).parent
Picture = alt.TopLevelMixin

OF_SMOLLM2: dict[str, Callable[[Model], Picture]] = {
    "partial_forwards": sites.saved,
    "sites": sites.norms,
    "measurements/ablation": activations.ablation,
    "measurements/attribution_patching": activations.attribution_patching,
    "measurements/average_trace": activations.average_trace,  # a quarter of an hour on one core
    "measurements/causal_trace": activations.causal_trace,
    "measurements/direct_logit_attribution": activations.direct_logit_attribution,
    "measurements/edge_attribution": activations.edge_attribution,
    "measurements/faithfulness": activations.faithfulness,
    "measurements/layer_horizon": activations.layer_horizon,
    "measurements/layer_paths": activations.layer_paths,
    "measurements/layer_stages": activations.layer_stages,
    "measurements/layer_surgery": activations.layer_surgery,
    "measurements/logit_lens": activations.logit_lens,
    "measurements/neuron_importance": activations.neuron_importance,
    "measurements/norm_report": activations.norm_report,
    "measurements/patching": activations.patching,
    "measurements/path_patching": activations.path_patching,
    "measurements/survey": activations.survey,
}
"""Pictures of the embedded model, by their place in this folder."""

OF_KNOWN: dict[str, Callable[[], Picture]] = {
    "known_circuits": circuits.known_circuits,
    "landscape/bias_law": samplers.where_the_law_holds,
    "landscape/known_truths": landscape.known_truths,
    "landscape/samplers": samplers.laws,
    "landscape/trajectory_dln": landscape.trajectory_dln,
    "landscape/trajectory_induction": landscape.trajectory_induction,
    "landscape/trajectory_modular_addition": landscape.trajectory_modular_addition,
    "measurements/calibrate": landscape.calibrate,
    "measurements/learning_coefficient": landscape.learning_coefficient,
    "measurements/refined_learning_coefficients": landscape.refined_learning_coefficients,
    "measurements/trajectory": landscape.trajectory,
}
"""Pictures of reference material."""

LONG: dict[str, Callable[[], Picture]] = {
    "landscape/trajectory_layernorm.png": landscape.trajectory_layernorm,
    "landscape/trajectory_layernorm_own": landscape.trajectory_layernorm_own,
    "landscape/trajectory_layernorm_training": landscape.trajectory_layernorm_training,
}
"""Pictures of reference material that take half an hour each, and are made only when they are named."""

ELSEWHERE = {
    "norms": "python -m benchmarks.norm_removal FOLDER",
    "report": "the report of `assay survey` in a browser, with one cell marked",
    "suite": "make suite",
}
"""Pictures that something else makes."""


def main(names: list[str]) -> None:
    """Make the pictures named, or all.

    Args:
        names: of pictures.
    """
    usual = {Path(place).stem: place for place in (*OF_SMOLLM2, *OF_KNOWN)}
    places = {**usual, **{Path(place).stem: place for place in LONG}}
    for name in names:
        if name not in places:
            others = "".join(f"\n  {other}: {command}" for other, command in ELSEWHERE.items())
            sys.exit(f"{name!r} is not drawn here. These are: {', '.join(places)}. Made elsewhere:{others}")
    for name in names or usual:
        path = HERE / places[name]
        drawn(places[name]).save(
            path if path.suffix else path.with_suffix(".svg"), scale_factor=2
        )  # of a PNG


def drawn(place: str) -> Picture:
    """Draw one picture.

    Args:
        place: a key of one of the tables.
    """
    return OF_SMOLLM2[place](smollm2()) if place in OF_SMOLLM2 else {**OF_KNOWN, **LONG}[place]()


@cache
def smollm2() -> Model:
    """The embedded model."""
    return assay.load("smollm2")


if __name__ == "__main__":
    main(sys.argv[1:])
