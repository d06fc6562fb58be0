"""Indices of a fused pool: a tensor that holds a byte a window and is torch's int64 indices to all who look at it.

Whether a model only hands its indices to an unpool, or reads them, adds to them, writes them to disk, cannot be known
beforehand for every input. So nobody decides beforehand: the first operation that needs the numbers makes them.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary
from torch.utils import _pytree as pytree

from asegnet_fast.ops import _library
from asegnet_fast.ops.max_pool2x2 import exchange

_aten = torch.ops.aten
#: What makes another tensor of the same memory.
_SAME_MEMORY = (_aten.detach.default, _aten.alias.default)
#: What copies without looking at a value.
_COPIES = (_aten.clone.default, _aten._to_copy.default)


class _Cell:
    """What tensors of the same memory share: codes of a map of `sides`, or, once somebody has looked, indices."""

    __slots__ = ("code", "real", "sides")

    def __init__(self, code: Tensor | None, sides: tuple[int, int], real: Tensor | None = None) -> None:
        self.code, self.sides, self.real = code, sides, real


class PoolIndices(Tensor):
    """Indices as `torch.nn.functional.max_pool2d(x, 2, return_indices=True)` returns them, made on demand.

    Any operation, view or write turns it for good into the int64 tensor it stands for; pickled, it is that tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, cell: _Cell) -> PoolIndices:
        shown = cell.code if cell.real is None else cell.real
        self = Tensor._make_wrapper_subclass(
            cls, shown.shape, shown.stride(), dtype=torch.int64, device=shown.device, requires_grad=False
        )
        self._cell = cell
        return self

    def __init__(self, cell: _Cell) -> None:
        pass

    @classmethod
    def of(cls, code: Tensor, input_size: tuple[int, ...]) -> PoolIndices:
        """From a pool's codes and the size of what it pooled."""
        return cls(_Cell(code, (int(input_size[-2]), int(input_size[-1]))))

    def code_for(self, shape: torch.Size, output_size: tuple[int, int]) -> Tensor | None:
        """The codes with which a map of `shape` may be unpooled to `output_size`; None: it takes the indices."""
        cell = self._cell
        fits = cell.real is None and cell.sides == tuple(output_size) and self.shape == shape
        return cell.code if fits else None

    def plain(self) -> Tensor:
        """The int64 tensor, the same one each time."""
        cell = self._cell
        if cell.real is None:
            cell.real = exchange.codes_to_indices(cell.code, cell.sides)
            cell.code = None
        return cell.real

    def nbytes_held(self) -> int:
        """Bytes of memory behind it at present."""
        cell = self._cell
        return (cell.code if cell.real is None else cell.real).untyped_storage().nbytes()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        first = args[0] if args else None
        if torch.Tag.inplace_view in func.tags:  # resize_, unsqueeze_, set_: the wrapper would keep its shape
            raise _refused(func.__name__)
        if isinstance(first, cls):
            if func in _SAME_MEMORY:
                return cls(first._cell)
            cell = first._cell
            if cell.real is None and func in _COPIES and kwargs.get("dtype") in (None, torch.int64):
                # A new dtype would need the numbers; a device or memory format does not.
                options = {name: value for name, value in kwargs.items() if name != "dtype"}
                return cls(_Cell(func(cell.code, *args[1:], **options), cell.sides))
        args, kwargs = pytree.tree_map_only(cls, cls.plain, (args, kwargs))
        result = func(*args, **kwargs)
        if func._schema.is_mutable:
            _bump(func, args, kwargs)
            if isinstance(first, cls) and result is args[0]:
                return first
        return result

    # What reads memory without an operation.

    def numpy(self, *args, **kwargs):
        return self.plain().numpy(*args, **kwargs)

    def __array__(self, *args, **kwargs):
        return self.plain().__array__(*args, **kwargs)

    def __dlpack__(self, *args, **kwargs):
        return self.plain().__dlpack__(*args, **kwargs)

    def tolist(self) -> list:
        return self.plain().tolist()

    def data_ptr(self) -> int:
        return self.plain().data_ptr()

    def storage(self):
        return self.plain().storage()

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        raise _refused("data = ...")

    def apply_(self, function) -> PoolIndices:
        self.plain().apply_(function)
        return self

    def map_(self, other: Tensor, function) -> PoolIndices:
        self.plain().map_(other.plain() if isinstance(other, PoolIndices) else other, function)
        return self

    def share_memory_(self) -> PoolIndices:
        self.plain().share_memory_()
        return self

    def is_shared(self) -> bool:
        return self.plain().is_shared()

    def __reduce_ex__(self, protocol):
        return self.plain().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict) -> PoolIndices:
        if id(self) not in memo:
            cell = self._cell
            code, real = copy.deepcopy(cell.code, memo), copy.deepcopy(cell.real, memo)
            memo[id(self)] = PoolIndices(_Cell(code, cell.sides, real))
        return memo[id(self)]

    def __repr__(self, *, tensor_contents=None) -> str:
        return repr(self.plain())

    # How torch.compile takes one that comes from outside the compiled region.

    def __tensor_flatten__(self) -> tuple[list[str], object]:
        self.plain()
        return ["_real"], None

    @property
    def _real(self) -> Tensor:
        return self.plain()

    @staticmethod
    def __tensor_unflatten__(inner: dict, meta: object, outer_size, outer_stride) -> PoolIndices:
        return PoolIndices(_Cell(None, (0, 0), inner["_real"]))


def _refused(what: str) -> RuntimeError:
    return RuntimeError(
        f"indices: expected no change of the memory or shape of a fused pool's indices in place, got {what}; "
        "indices + 0 is a plain tensor"
    )


def _bump(func, args, kwargs) -> None:
    """Count the write on what was written, as operations below autograd do not, so that backward notices."""
    for k, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = kwargs.get(argument.name) if k >= len(args) else args[k]
        if isinstance(value, Tensor):
            torch.autograd.graph.increment_version(value)


def may_defer(x: Tensor) -> bool:
    """Whether a pool of `x` may return `PoolIndices`: not where torch records or transforms operations."""
    return not (
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, torch.nn.Parameter)
        or has_torch_function_unary(x)
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or _library.is_transformed()
    )
