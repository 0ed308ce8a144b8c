"""What can be known to be wrong before anything starts: the machine, the models, the data, the placement."""
