"""A reward model from ranked answers."""
