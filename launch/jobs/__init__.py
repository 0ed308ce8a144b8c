"""Ray jobs: what a job brings along, its submission, logs, stop and scale."""
