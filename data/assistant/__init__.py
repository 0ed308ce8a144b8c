"""The pocket assistant: a small closed world as data, and the gold scorer that knows its truth."""
