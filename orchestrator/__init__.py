"""The central trainer: stages, pipeline, rollout pool, rewards, advantages, checkpoints, tracking, evaluation."""
