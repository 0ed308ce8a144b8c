"""PPO against a reward model or function."""
