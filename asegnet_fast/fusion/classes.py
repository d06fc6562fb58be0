"""Classes derived from a model's own, under the same name, with some methods in another form.

They are made when needed and kept. An instance is pickled as one of its original class that becomes one of the
derived class when it is read, so that a process which never called `fuse` reads it.
"""

from __future__ import annotations

import inspect
import threading
import types
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

#: How a kind of derived class gets its methods: original class -> {name: method}; {} where there are none.
Maker = Callable[[type], dict[str, object]]

_makers: dict[str, Maker] = {}


class _Made(NamedTuple):
    derived: type
    sources: dict[str, object]


_made: dict[tuple[type, str], _Made] = {}
_lock = threading.RLock()


def register(kind: str, maker: Maker) -> None:
    """Name a kind of derived class; the name stands in pickles."""
    _makers[kind] = maker


OWN_FORWARD = "forward is an attribute of this object, not of its class"


def become(module: nn.Module, kind: str) -> str | None:
    """Give `module` the class derived from its own; why that cannot be, or None."""
    cls = type(module)
    if "forward" in vars(module):
        return OWN_FORWARD
    if isinstance(module, torch.fx.GraphModule):
        return "a torch.fx.GraphModule writes its own class"
    if isinstance(cls.__init_subclass__, types.MethodType):  # torch's and object's are built in
        return f"{cls.__name__} acts when a class is derived from it (__init_subclass__)"
    try:
        module.__class__ = derive(cls, kind)
    except TypeError as error:  # a metaclass with an opinion, a class with other memory
        return f"no class like {cls.__name__} can be derived: {error}"
    return None


def derive(original: type, kind: str) -> type:
    """The derived class of that kind; `original` itself where it has nothing to change."""
    with _lock:
        made = _made.get((original, kind))
        if made is None or made.sources != _sources(original, made.sources):
            methods = _makers[kind](original)
            derived = _make(original, kind, methods) if methods else original
            made = _made[original, kind] = _Made(derived, _sources(original, methods))
        return made.derived


def _sources(original: type, names: Iterable[str]) -> dict[str, object]:
    """The methods that a derived class has in another form; somebody may have changed the class since."""
    return {name: inspect.getattr_static(original, name, None) for name in names}


def _make(original: type, kind: str, methods: dict[str, object]) -> type:
    def __reduce_ex__(self, protocol):
        reduced = super(derived, self).__reduce_ex__(protocol)
        if not isinstance(reduced, tuple):  # the name of a global
            return reduced
        function, arguments, *rest = reduced
        arguments = tuple(original if a is derived else a for a in arguments)
        return (_rebuild, (kind, function, arguments), *rest)

    namespace = {
        **methods,
        "__reduce_ex__": __reduce_ex__,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_asegnet_fast_original": original,
    }
    derived = type(original)(original.__name__, (original,), namespace)
    return derived


def _rebuild(kind: str, function: Callable, arguments: tuple) -> object:
    made = function(*arguments)
    made.__class__ = derive(type(made), kind)
    return made


def original_of(module: nn.Module) -> type | None:
    """The class that a module of a derived class had before; None for any other module."""
    return vars(type(module)).get("_asegnet_fast_original")


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody watches the calls of `module`, or of all modules."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or nn.modules.module._has_any_global_hook()
        or "forward" in vars(module)
    )
