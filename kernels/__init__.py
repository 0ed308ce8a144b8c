"""The hot maths, pure: packed attention, log-probs of a head, advantages, losses and their statistics."""
