"""Clusters of machines that ssh reaches: checked, brought up for a run, ended with it."""
