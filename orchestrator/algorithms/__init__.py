"""Advantages and KL: pure arithmetic on the driver."""
