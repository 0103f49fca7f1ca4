"""Reference material: models and densities whose true values are known in closed form."""

from assay.zoo import copier, deep_linear, densities, gibbs

__all__ = ["copier", "deep_linear", "densities", "gibbs"]
