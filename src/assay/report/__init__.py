"""Reports: one offline page from one or several results, and figures as files."""

from assay.report.page import write_report

__all__ = ["write_report"]
