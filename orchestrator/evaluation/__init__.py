"""Evaluation: models compared on the same prompts and seeds, with confidence intervals."""
