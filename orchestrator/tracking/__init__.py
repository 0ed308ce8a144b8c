"""The record of a run: metrics, samples, W&B, and the output on the screen."""
