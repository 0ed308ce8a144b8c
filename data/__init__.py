"""Records, readers, tokenisation, packing, run directories and the built-in pocket-assistant data set."""
