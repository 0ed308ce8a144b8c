"""Clusters of machines that ssh reaches: their checks, and Ray on them from the start to the end of a run."""
