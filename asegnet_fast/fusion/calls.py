"""Calls to torch's pooling functions inside forward methods: the same code, with other functions behind the names.

Neither torch nor the model's module is touched in what they hold: a copy of the method reads one global name anew
(`F` in `F.max_pool2d`), under a name of ours that is added to its module. Everything else in it, closures, defaults
and line numbers, stays. torch.compile sees an ordinary function.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from torch import nn

from asegnet_fast.fusion import classes
from asegnet_fast.fusion.functional import ORIGINALS, REPLACEMENTS
from asegnet_fast.fusion.modules import FUSED

#: Attributes under which torch offers what we replace.
NAMES = frozenset({"max_pool2d", "max_pool2d_with_indices", "max_unpool2d"})
#: Helper functions are followed into the model's own package only, never into these.
_FOREIGN = frozenset({"torch", "asegnet_fast", "numpy", "builtins"})
_PREFIX = "__asegnet_fast_"
#: From 3.11 on the lowest bit of LOAD_GLOBAL's argument says something else.
_GLOBAL_SHIFT = 1 if sys.version_info >= (3, 11) else 0
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")


#: A call as it is spelled, and why it stays.
Left = tuple[str, str]
_HIDDEN = "cannot be told to be torch's function: it is not read from a global name"


class Rewritten(NamedTuple):
    """A function with its calls replaced (None: none were), the calls replaced, and those that were not."""

    function: types.FunctionType | None
    replaced: list[str]
    left: list[Left]


def rewrite(function: types.FunctionType, _above: tuple = ()) -> Rewritten:
    """`function` with every call of torch's pooling functions that can be told replaced."""
    found: list[str] = []
    left: list[Left] = []
    code = _rewrite_code(function.__code__, function, (*_above, function), found, left)
    if code is function.__code__:
        return Rewritten(None, [], left)
    copy = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(copy, function)
    del copy.__wrapped__  # it is no decorator: nothing calls the function underneath
    return Rewritten(copy, found, left)


def _rewrite_code(
    code: types.CodeType, function: types.FunctionType, above: tuple, found: list[str], left: list[Left]
) -> types.CodeType:
    constants = tuple(
        _rewrite_code(c, function, above, found, left) if isinstance(c, types.CodeType) else c
        for c in code.co_consts
    )
    names, instructions = list(code.co_names), bytearray(code.co_code)
    seen: set[int] = set()
    steps = list(dis.get_instructions(code))
    for k, step in enumerate(steps):
        if step.opname != "LOAD_GLOBAL":
            continue
        path, value = _resolve(steps, k, function.__globals__)
        if value is not None:
            seen.update(range(k, k + len(path) + 1))
        target = _replacement(value, function, above, left)
        if target is None:
            continue
        spelled = ".".join((step.argval, *path))
        name = _PREFIX + spelled.replace(".", "_")
        index = names.index(name) if name in names else len(names)
        argument = index << _GLOBAL_SHIFT | (step.arg & _GLOBAL_SHIFT)
        if argument > 255 or step.arg > 255:  # it would need another instruction, and all jumps would move
            left.append((spelled, f"too many names in {function.__qualname__}"))
            continue
        if index == len(names):
            names.append(name)
        instructions[step.offset + 1] = argument
        function.__globals__[name] = _nested(path, target)
        found.append(spelled)
    left += [
        (_spelled(steps, k), _HIDDEN) for k in range(len(steps)) if k not in seen and _is_unresolved(steps, k)
    ]
    if names == list(code.co_names) and constants == code.co_consts:
        return code
    return code.replace(co_names=tuple(names), co_code=bytes(instructions), co_consts=constants)


def _resolve(steps: list[dis.Instruction], k: int, names: dict) -> tuple[tuple[str, ...], object]:
    """The attributes read from the global at step k, as far as modules go, and what is there in the end."""
    value = names.get(steps[k].argval, getattr(builtins, steps[k].argval, None))
    path: list[str] = []
    for step in steps[k + 1 :]:
        if not isinstance(value, types.ModuleType) or step.opname not in _ATTRIBUTE:
            break
        value = getattr(value, step.argval, None)
        path.append(step.argval)
    return tuple(path), value


def _replacement(
    value: object, function: types.FunctionType, above: tuple, left: list[Left]
) -> Callable | None:
    """What stands for a function that a method calls: ours for torch's, a rewritten one for the package's own."""
    try:
        if value in REPLACEMENTS:
            return REPLACEMENTS[value]
    except TypeError:  # not hashable
        return None
    package = (function.__module__ or "").split(".")[0]
    if (
        not isinstance(value, types.FunctionType)
        or value in above
        or package in _FOREIGN
        or (value.__module__ or "").split(".")[0] != package
    ):
        return None
    helper = rewrite(value, above)
    left += helper.left
    return helper.function


def _nested(path: tuple[str, ...], target: Callable) -> object:
    """An object from which `path` leads to `target`."""
    for name in reversed(path):
        target = types.SimpleNamespace(**{name: target})
    return target


def _is_unresolved(steps: list[dis.Instruction], k: int) -> bool:
    step = steps[k]
    if step.opname in ("LOAD_GLOBAL", "LOAD_DEREF", "IMPORT_FROM"):
        return step.argval in NAMES
    on_self = k > 0 and steps[k - 1].argval == "self"  # a child or method of that name
    return step.opname in _ATTRIBUTE and step.argval in NAMES and not on_self


def _spelled(steps: list[dis.Instruction], k: int) -> str:
    owner = steps[k - 1].argval if k > 0 and steps[k].opname in _ATTRIBUTE else None
    return f"{owner}.{steps[k].argval}" if isinstance(owner, str) else str(steps[k].argval)


# ---- a class's methods, a module's attributes ------------------------------------------------------------


def _functions(cls: type) -> Iterator[tuple[str, object]]:
    """The functions that instances find, as they stand in the classes that define them."""
    names = {name for base in cls.__mro__ if base not in (nn.Module, object) for name in vars(base)}
    for name in sorted(names - {"__init__"}):  # it has run
        value = inspect.getattr_static(cls, name)
        function = value.__func__ if isinstance(value, staticmethod) else value
        # torch's own methods are left: the new name would have to be written into a module of torch.
        if isinstance(function, types.FunctionType) and not (function.__module__ or "").startswith("torch."):
            yield name, value


def rewrite_methods(cls: type) -> tuple[dict[str, object], list[str], list[Left]]:
    """{name: method with its calls replaced}, the calls replaced, and those that were not."""
    methods: dict[str, object] = {}
    replaced: list[str] = []
    left: list[Left] = []
    for stock, fused in FUSED.items():
        if issubclass(cls, stock) and cls.forward is stock.forward:
            methods["forward"] = fused.forward
            replaced.append(f"forward of {stock.__name__}")
    for name, value in _functions(cls):
        static = isinstance(value, staticmethod)
        function = value.__func__ if static else value
        wrapped = getattr(function, "__wrapped__", None)
        if isinstance(wrapped, types.FunctionType):
            below = rewrite(wrapped)
            left += [(call, f"{name} is decorated") for call in below.replaced] + below.left
        result = rewrite(function)
        if result.function is not None:
            methods[name] = staticmethod(result.function) if static else result.function
        replaced += result.replaced
        left += result.left
    return methods, replaced, left


KIND = "calls"
classes.register(KIND, lambda cls: rewrite_methods(cls)[0])


def swap_attributes(module: nn.Module, table: Mapping = REPLACEMENTS) -> list[tuple[str, str]]:
    """Replace functions that a module keeps in its attributes, bare or in a `functools.partial`.

    Returns (attribute, name of the function) for each.
    """
    swapped = []
    for name, value in list(vars(module).items()):
        partial = type(value) is functools.partial
        function = value.func if partial else value
        if not isinstance(function, types.FunctionType | types.BuiltinFunctionType) or function not in table:
            continue
        new = table[function]
        vars(module)[name] = functools.partial(new, *value.args, **value.keywords) if partial else new
        swapped.append((name, new.__name__))
    return swapped


def restore_attributes(module: nn.Module) -> None:
    """Undo `swap_attributes`."""
    swap_attributes(module, ORIGINALS)
