"""Weights from trainer to engine: whole tensors out of ZeRO (source), and transfers, one file each."""
