"""Measurements in activation space: lens, trace, neuron importance, and the three together."""
