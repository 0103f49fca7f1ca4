"""Samplers of a density exp(-U), each one file: a state, ``init`` and a pure ``step``."""
