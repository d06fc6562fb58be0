"""Batch normalisation and ReLU in one op, and the same with a 2x2 max-pool."""
