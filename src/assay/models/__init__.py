"""The thing measured: loading a model, naming places in it, reading and replacing what is there."""
