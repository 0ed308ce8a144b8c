"""Several answers per prompt, ranked: what a reward model is trained on."""
