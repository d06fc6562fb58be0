"""The fused operations: one folder each, found by name."""
