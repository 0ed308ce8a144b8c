"""Checks that run before anything starts: the machine, the models, the data and the placement."""
