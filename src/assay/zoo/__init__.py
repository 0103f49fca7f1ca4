"""Reference material: networks and densities that are trained in seconds or whose true values are known."""

from assay.zoo import (
    copier,
    deep_linear,
    densities,
    digits,
    gibbs,
    induction,
    modular_addition,
    toy_layernorm,
    training,
)

__all__ = [
    "copier",
    "deep_linear",
    "densities",
    "digits",
    "gibbs",
    "induction",
    "modular_addition",
    "toy_layernorm",
    "training",
]
