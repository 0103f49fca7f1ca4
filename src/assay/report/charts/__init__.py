"""One chart for each measurement, under the measurement's name: a function of its dataset alone."""
