"""Suites: public evaluations of truthfulness, bias, harmlessness and preference, read from files by path."""
