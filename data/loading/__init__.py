"""Loading: files become rows (readers), rows become typed records (rows), records become tokens (datasets)."""
