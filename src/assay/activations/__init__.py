"""Activation space: a file for each measurement, and rooms for what several of them share."""
