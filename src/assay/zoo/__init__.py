"""Reference material: models and densities whose true values are known in closed form."""

from assay.zoo import deep_linear, densities, gibbs

__all__ = ["deep_linear", "densities", "gibbs"]
