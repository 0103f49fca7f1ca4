"""The sides of the comparison, one module each, run in a process of its own environment (see `worker`)."""
