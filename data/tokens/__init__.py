"""Tokens: tokenizers, chat templates with their loss masks, packed batches."""
