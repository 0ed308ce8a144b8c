"""Rows from files, Python and the hub to typed, tokenised examples: readers, then rows, then datasets."""
