"""Reports: one offline page from one or several results, and figures as files."""

from assay.report.page import write_report
from assay.report.save import save_figures

__all__ = ["save_figures", "write_report"]
