"""Assay side by side with what a user would otherwise run: same work, same machine, same minutes.

`python -m benchmarks.run` measures, `python -m benchmarks.table` writes the table of docs/benchmarks.md.
"""
