"""Fused operations for attention SegNets, their networks, and CT cross-validation."""

from asegnet_fast import nn
from asegnet_fast.ops._library import backends, use_backend
from asegnet_fast.ops.max_pool2x2.exchange import codes_to_indices, indices_to_codes
from asegnet_fast.ops.max_pool2x2.op import max_pool2x2, max_unpool2x2

__all__ = [
    "backends",
    "codes_to_indices",
    "indices_to_codes",
    "max_pool2x2",
    "max_unpool2x2",
    "nn",
    "use_backend",
]
