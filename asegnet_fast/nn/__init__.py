"""Drop-in modules: parameter names, arguments and numbers of their plain PyTorch twins."""

from asegnet_fast.nn import functional
from asegnet_fast.nn.pooling import MaxPool2d, MaxUnpool2d

__all__ = ["MaxPool2d", "MaxUnpool2d", "functional"]
