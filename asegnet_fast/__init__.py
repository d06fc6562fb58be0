"""Fused operations for attention SegNets, their networks, and CT cross-validation."""

from asegnet_fast import compat, models, nn
from asegnet_fast.fusion.walk import fuse, unfuse
from asegnet_fast.ops._library import backends, use_backend
from asegnet_fast.ops.attention_gate.op import attention_gate
from asegnet_fast.ops.bn_relu.op import bn_relu, bn_relu_max_pool2x2
from asegnet_fast.ops.max_pool2x2.exchange import codes_to_indices, indices_to_codes
from asegnet_fast.ops.max_pool2x2.op import max_pool2x2, max_unpool2x2
from asegnet_fast.ops.max_pool2x2x2.op import max_pool2x2x2, max_unpool2x2x2
from asegnet_fast.ops.tversky.op import (
    cross_entropy_loss,
    dice_loss,
    focal_tversky_loss,
    generalized_dice_loss,
    loss_from_sums,
    region_sums,
    tversky_loss,
)

__all__ = [
    "attention_gate",
    "backends",
    "bn_relu",
    "bn_relu_max_pool2x2",
    "codes_to_indices",
    "compat",
    "cross_entropy_loss",
    "dice_loss",
    "focal_tversky_loss",
    "fuse",
    "generalized_dice_loss",
    "indices_to_codes",
    "loss_from_sums",
    "max_pool2x2",
    "max_pool2x2x2",
    "max_unpool2x2",
    "max_unpool2x2x2",
    "models",
    "nn",
    "region_sums",
    "tversky_loss",
    "unfuse",
    "use_backend",
]
