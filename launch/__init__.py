"""How a run starts: the command line, config loading, doctor."""
