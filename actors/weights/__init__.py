"""Weights from trainer to engine: whole tensors out of ZeRO (source), buckets, and their transfer through Ray."""
