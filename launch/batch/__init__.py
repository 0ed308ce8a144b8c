"""Batch systems: files of a run for Slurm or Kubernetes, and their submission."""
