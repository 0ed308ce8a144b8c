"""One model in its processes: worker (one rank), group (all ranks), and how a model is loaded, run and exported."""
