"""Ray jobs: their contents, submission, logs and control."""
