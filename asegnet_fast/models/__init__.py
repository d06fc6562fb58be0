"""The networks: SegNet, and SegNet with an attention gate on every skip connection."""

from asegnet_fast.models.a_segnet import ASegNet
from asegnet_fast.models.blocks import PRESETS
from asegnet_fast.models.segnet import SegNet

__all__ = ["PRESETS", "ASegNet", "SegNet"]
