"""Estimates with their intervals, comparisons, multiple testing, convergence, checks."""
