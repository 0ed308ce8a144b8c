"""Text to token ids and back: tokenizers, chat templates with their loss masks, packed batches."""
