"""Norms: report what becomes of a model without them; fold, freeze, fix or remove them, always on a copy.

Public as ``assay.norms``.
"""

from assay.activations.norm_report import norm_report as report
from assay.models.norms.epsilon import export
from assay.models.norms.finding import Norm
from assay.models.norms.finding import find_norms as find
from assay.models.norms.fixing import freeze, remove, scale
from assay.models.norms.folding import fold, obstacles
from assay.models.norms.recipe import Recipe
from assay.models.norms.removal import Removal, remove_by_fine_tuning

__all__ = [
    "Norm",
    "Recipe",
    "Removal",
    "export",
    "find",
    "fold",
    "freeze",
    "obstacles",
    "remove",
    "remove_by_fine_tuning",
    "report",
    "scale",
]
