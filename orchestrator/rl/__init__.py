"""The PPO step in parts: where samples come from, passes over them, advantages, updates, what is reported."""
