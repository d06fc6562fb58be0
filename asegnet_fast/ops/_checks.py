"""Checks of arguments' metadata. Every complaint names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_STRIDED = torch.strided  # looked up once: a small op's call is mostly such look-ups


def describe(value: object) -> str:
    """What came, in few words."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{value!r} ({type(value).__name__})"


def wrong_type(name: str, expected: str, got: object) -> TypeError:
    return TypeError(f"{name}: expected {expected}, got {describe(got)}")


def wrong_value(name: str, expected: str, got: object) -> ValueError:
    return ValueError(f"{name}: expected {expected}, got {describe(got)}")


def check_tensor(name: str, value: object, dims: tuple[int, ...] | None = None) -> None:
    """`value` is a strided tensor with one of the given numbers of dimensions."""
    if not isinstance(value, Tensor):
        raise wrong_type(name, "a tensor", value)
    if value.layout != _STRIDED:
        raise wrong_type(name, "a dense (strided) tensor", value.layout)
    if dims is not None and value.dim() not in dims:
        raise wrong_value(name, f"{' or '.join(f'{d}-D' for d in dims)} shape", value)


#: The dtypes every op takes.
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_float(name: str, value: Tensor) -> None:
    if value.dtype not in FLOATS:
        raise wrong_type(name, "dtype float32, float64, bfloat16 or float16", value)


def check_same(what: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Two tensors agree in `what`: "device", "dtype" or "shape"."""
    if getattr(value, what) != getattr(other, what):
        error = wrong_value if what == "shape" else wrong_type
        raise error(name, f"the {what} of {other_name}, {getattr(other, what)}", value)


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    if value not in tuple(choices):
        raise wrong_value(name, " or ".join(repr(c) for c in choices), value)
