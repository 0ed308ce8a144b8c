"""Pre-training on plain text."""
