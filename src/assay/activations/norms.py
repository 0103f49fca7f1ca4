"""Norms: report what becomes of a model without them; fold, freeze, fix or remove them, always on a copy.

Public as ``assay.norms``.
"""

from assay.activations.norm_report import norm_report as report
from assay.models.norms.epsilon import export
from assay.models.norms.finding import Norm
from assay.models.norms.finding import find_norms as find
from assay.models.norms.fixing import freeze, remove, scale
from assay.models.norms.folding import fold, obstacles

__all__ = ["Norm", "export", "find", "fold", "freeze", "obstacles", "remove", "report", "scale"]
