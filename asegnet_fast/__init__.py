"""Fused operations for attention SegNets, their networks, and CT cross-validation."""
