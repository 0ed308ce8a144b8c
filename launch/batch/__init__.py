"""Clusters that a batch system gives: files for Slurm or Kubernetes, and their submission."""
