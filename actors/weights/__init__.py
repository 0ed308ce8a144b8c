"""Weights from trainer to engine: whole tensors out of ZeRO (source), buckets, and the transfer that carries them."""
