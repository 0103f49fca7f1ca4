"""The command line: one thin command per verb. ``assay --help`` imports neither torch nor a measurement."""

from assay.cli.app import main

__all__ = ["main"]
