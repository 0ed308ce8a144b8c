"""Models measured against each other on the same prompts and seeds, with intervals."""
