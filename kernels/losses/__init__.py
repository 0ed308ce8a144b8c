"""Losses that model workers minimise: one file per kind, each a sum over its units."""
