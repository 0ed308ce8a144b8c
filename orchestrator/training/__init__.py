"""What every training stage shares: the step loop, resume, checkpoints, clean stops, run-time checks."""
