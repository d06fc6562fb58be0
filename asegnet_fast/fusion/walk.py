"""`fuse` and `unfuse`: the walk over a model's modules."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import nn

from asegnet_fast.fusion import calls, classes, gates, measure
from asegnet_fast.fusion.modules import FUSED, STOCK
from asegnet_fast.fusion.report import Entry, Report, Saved
from asegnet_fast.nn.functional import is_2x2
from asegnet_fast.ops._checks import wrong_type

#: How far outputs on the example inputs may be from the untouched model's, relative to their largest magnitude. Pools
#: are exact; batch normalisation and gates add in another order, and a network may amplify that.
_TOLERANCE = 1e-2

_BY_CODES = "codes, a byte a window"


def fuse(
    model: nn.Module,
    example_inputs: object = None,
) -> Report:
    """Replace, in place, what of a model can be replaced by faster and leaner parts that give the same numbers.

    - `torch.nn.MaxPool2d` with kernel and stride 2 (no padding, no dilation) and `torch.nn.MaxUnpool2d` of that kind:
      a byte a window is kept for backward instead of an int64 index, and instead of the map that was pooled. Outputs
      and gradients are equal bit for bit.
    - Calls of `max_pool2d`, `max_pool2d_with_indices` and `max_unpool2d` of `torch.nn.functional`, and of
      `torch.max_pool2d`, in the methods of the model's classes, in functions of the same package that these call, and
      in attributes of modules.
    - Attention gates, x * sigmoid(BN(psi(relu(BN(Wx x) + BN(Wg g))))) with 1x1 convolutions and maps of one size, known
      by what they compute and not by name: one op in evaluation, with the batch normalisations folded in. A gate with
      batch normalisation trains as before. Equal within rounding.

    Indices keep torch's meaning: they are int64 tensors to whoever reads, computes with, saves or moves them, made when
    somebody does. Only an unpool back to the size that was pooled uses the bytes.

    Modules stay the objects they are, with another class; names, parameters, `state_dict`, hooks, training mode and
    every reference to a module stay. A fused model may be copied, pickled, wrapped for data parallel training and
    compiled; a pickle of one is read where asegnet_fast can be imported. Under torch.compile indices are int64 tensors
    made inside the graph.

    Args:
        model: any module, on any device.
        example_inputs: what the model takes: a tensor, a tuple of arguments, or a dict of keyword arguments. A copy of
            the model is run on them before and after: the report then has the bytes kept for backward, and if an output
            differs, all is undone and `RuntimeError` is raised.

    Returns:
        A `Report` of what was replaced, and what was left and why. A second call finds nothing more to replace.

    Raises:
        TypeError: model is no `torch.nn.Module`. RuntimeError: see example_inputs. Whatever the model itself raises on
            them, before anything is changed.
    """
    if not isinstance(model, nn.Module):
        raise wrong_type("model", "a torch.nn.Module", model)
    report = Report()
    before = None
    if example_inputs is not None:
        before = _run(model, example_inputs, report)
    for path, module in list(model.named_modules()):
        _fuse_one(path, module, report)
    if before is not None:
        _prove(model, example_inputs, before, report)
    return report


def unfuse(model: nn.Module) -> nn.Module:
    """Undo `fuse`, wherever it was called: every module gets the class back that it had. Returns `model`.

    Raises:
        TypeError: model is no `torch.nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise wrong_type("model", "a torch.nn.Module", model)
    for module in model.modules():
        stock = STOCK.get(type(module)) or classes.original_of(module)
        if stock is not None:
            module.__class__ = stock
        calls.restore_attributes(module)
        gates.restore(module)
    return model


def _run(model: nn.Module, example_inputs: object, report: Report) -> measure.Run | None:
    try:
        twin = copy.deepcopy(model)
    except Exception as error:  # whatever a class's own way of copying raises
        report.note = f"example inputs were not run: the model cannot be copied ({error})"
        return None
    return measure.run(twin, example_inputs)


def _prove(model: nn.Module, example_inputs: object, before: measure.Run, report: Report) -> None:
    try:
        after = measure.run(copy.deepcopy(model), example_inputs)
    except Exception:
        unfuse(model)
        raise
    difference = measure.largest_difference(before, after)
    if not difference <= _TOLERANCE:
        unfuse(model)
        raise RuntimeError(
            f"example_inputs: expected the outputs of the model as it was, got some that differ by {difference:.1e} of "
            "their largest magnitude; nothing is fused"
        )
    report.saved = Saved(before.saved_bytes, after.saved_bytes)
    report.largest_difference = difference


# ---- one module -----------------------------------------------------------------------------------------


def _fuse_one(path: str, module: nn.Module, report: Report) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        report.left.append(Entry(path, type(module).__name__, "compiled by torch.jit"))
    elif type(module) in FUSED:
        _fuse_pool(path, module, report)
    elif type(module) not in STOCK and classes.original_of(module) is None:
        if not _fuse_gate(path, module, report):
            _fuse_calls(path, module, report)


def _fuse_gate(path: str, module: nn.Module, report: Report) -> bool:
    name = type(module).__name__
    try:
        plan = gates.find(module)
    except gates.NotAGate as reason:
        if reason.likely:
            report.left.append(Entry(path, name, f"as a gate: {reason}"))
        return False
    refused = gates.become(module, plan)
    if refused is None:
        report.replaced.append(Entry(path, name, gates.describe(plan)))
    else:
        report.left.append(Entry(path, name, refused))
    return refused is None


def _fuse_pool(path: str, module: nn.Module, report: Report) -> None:
    name = type(module).__name__
    if not is_2x2(module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1)):
        report.left.append(Entry(path, name, f"not 2x2 with stride 2: {module.extra_repr()}"))
    elif "forward" in vars(module):
        report.left.append(Entry(path, name, classes.OWN_FORWARD))
    else:
        module.__class__ = FUSED[type(module)]
        report.replaced.append(Entry(path, name, _BY_CODES))


def _fuse_calls(path: str, module: nn.Module, report: Report) -> None:
    for name, call in calls.swap_attributes(module):
        report.replaced.append(Entry(path, f"{call} in attribute {name}", _BY_CODES))
    _, replaced, left = calls.rewrite_methods(type(module))
    report.left += [Entry(path, call, reason) for call, reason in left]
    if replaced:
        reason = classes.become(module, calls.KIND)
        if reason is None:
            report.replaced += [
                Entry(path, call if times == 1 else f"{call}, {times} times", _BY_CODES)
                for call, times in Counter(replaced).items()
            ]
        else:
            report.left += [Entry(path, call, reason) for call in replaced]
