"""Drop-in modules: parameter names, arguments and numbers of their plain PyTorch twins."""

from asegnet_fast.nn import functional
from asegnet_fast.nn.attention_gate import AttentionGate
from asegnet_fast.nn.pooling import MaxPool2d, MaxUnpool2d

__all__ = ["AttentionGate", "MaxPool2d", "MaxUnpool2d", "functional"]
