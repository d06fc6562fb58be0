"""Drop-in modules: parameter names, arguments and numbers of their plain PyTorch twins."""

from asegnet_fast.nn import functional
from asegnet_fast.nn.attention_gate import AttentionGate
from asegnet_fast.nn.batchnorm import BatchNormReLU2d, SyncBatchNormReLU2d
from asegnet_fast.nn.losses import (
    CrossEntropyLoss,
    DiceLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    TverskyLoss,
)
from asegnet_fast.nn.pooling import MaxPool2d, MaxUnpool2d
from asegnet_fast.nn.pooling3d import MaxPool3d, MaxUnpool3d
from asegnet_fast.nn.sync_loss import SyncLoss

__all__ = [
    "AttentionGate",
    "BatchNormReLU2d",
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalTverskyLoss",
    "GeneralizedDiceLoss",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "SyncBatchNormReLU2d",
    "SyncLoss",
    "TverskyLoss",
    "functional",
]
