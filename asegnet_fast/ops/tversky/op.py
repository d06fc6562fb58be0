"""Region losses from one pass over logits and labels: Dice, generalised Dice, Tversky, focal Tversky, cross-entropy.

`region_sums` makes six sums per image and class, `loss_from_sums` the loss and its derivative with respect to
them; an all_reduce fits between the two. `region_loss` does both in one call. The softmax is never stored: the
backward ops compute it again. Sums and loss are float32 (float64 for float64 logits), under autocast too. An
undefined label raises on the CPU; on a GPU, or in a compiled reference, it enters no sum.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from asegnet_fast.ops import _library
from asegnet_fast.ops._checks import (
    check_choice,
    check_float,
    check_same,
    check_tensor,
    wrong_type,
    wrong_value,
)
from asegnet_fast.ops.tversky import reference

#: dtypes of a target
LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
#: names of the losses that `loss_from_sums` makes
KINDS = {
    "tversky": reference.TVERSKY,
    "literal_dice": reference.LITERAL_DICE,
    "generalized_dice": reference.GENERALIZED_DICE,
    "cross_entropy": reference.CROSS_ENTROPY,
}
#: variants of Dice -> their kind; both have alpha = beta = 0.5
DICE_KINDS = {"soft": "tversky", "literal": "literal_dice"}
EPS = 1e-8
EPS_GENERALIZED_DICE = 1.19e-7  # MATLAB's eps('single')
ALPHA, BETA, GAMMA = 0.3, 0.7, 4 / 3


class RegionSums(NamedTuple):
    """Sums per image and class, each [N, classes]; p is the softmax probability, g the one-hot label."""

    tp: Tensor  #: sum p g
    sum_p: Tensor  #: sum p
    sum_g: Tensor  #: sum g; has no gradient
    sum_p2: Tensor  #: sum p^2
    ce: Tensor  #: sum of -g log p
    fp: Tensor  #: sum p (1 - g)
    fn: Tensor  #: sum (1 - p) g


# ---- checks ---------------------------------------------------------------------------------------------


def _check_inputs(logits: Tensor, target: Tensor, ignore_index: int | None) -> None:
    check_tensor("logits", logits)
    check_float("logits", logits)
    sizes = logits.shape
    if len(sizes) < 2 or sizes[1] == 0:
        raise wrong_value("logits", "shape [N, C, *spatial] with C of at least 1", logits)
    check_tensor("target", target)
    if target.dtype not in LABELS:
        raise wrong_type("target", "integer labels (uint8, int8, int16, int32, int64) or bool", target)
    shape = sizes[:1] + sizes[2:]
    if target.shape != shape:
        raise wrong_value("target", f"shape {tuple(shape)}, the logits' without the class axis", target)
    check_same("device", "target", target, "logits", logits)
    if ignore_index is not None:
        check_ignore_index(ignore_index)


def check_ignore_index(ignore_index: int | None) -> None:
    """Raise TypeError or ValueError unless it is None or an int that a label can be."""
    if ignore_index is None:
        return
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise wrong_type("ignore_index", "None or an int", ignore_index)
    if not -(2**63) <= ignore_index < 2**63:
        raise wrong_value("ignore_index", "None or an int of 64 bits", ignore_index)


def _check_number(name: str, value: object, least: float, open_end: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(name, "a number", value)
    # Comparisons alone: NaN fails them, and tracing with symbolic floats knows them.
    if not least <= value <= sys.float_info.max or (open_end and value == least):
        raise wrong_value(name, f"a finite number {'above' if open_end else 'of at least'} {least:g}", value)


def check_options(
    alpha: float, beta: float, gamma: float, eps: float, reduce_over: str, include_background: bool
) -> None:
    """Raise TypeError or ValueError for an option of a region loss that is out of range."""
    _check_number("alpha", alpha, 0)
    _check_number("beta", beta, 0)
    _check_number("gamma", gamma, 0, open_end=True)
    _check_number("eps", eps, 0, open_end=True)
    check_choice("reduce_over", reduce_over, ("image", "batch"))
    if not isinstance(include_background, bool):
        raise wrong_type("include_background", "a bool", include_background)


def numbers(weight: Sequence[float]) -> Sequence[float]:
    """`weight` itself; TypeError unless it is a sequence of numbers."""
    if isinstance(weight, str) or not isinstance(weight, Sequence):
        raise wrong_type("weight", "None, a tensor or a sequence of numbers", weight)
    if not all(isinstance(w, (int, float)) for w in weight):
        raise wrong_type("weight", "a sequence of numbers", weight)
    return weight


def _weight_like(weight: Tensor | Sequence[float] | None, classes: int, like: Tensor) -> Tensor | None:
    """The class weights as a tensor in the dtype of the sums, on the logits' device."""
    if weight is None:
        return None
    dtype = reference.sums_dtype(like.dtype)
    if not isinstance(weight, Tensor):
        try:
            weight = torch.tensor(numbers(weight), dtype=dtype, device=like.device)
        except OverflowError as error:
            raise wrong_value("weight", "numbers that a float can hold", weight) from error
    check_tensor("weight", weight)
    if weight.is_complex():
        raise wrong_type("weight", "real numbers", weight)
    if weight.shape != (classes,):
        raise wrong_value("weight", f"one number for each of {classes} classes", weight)
    check_same("device", "weight", weight, "logits", like)
    if weight.requires_grad:
        raise wrong_value("weight", "a tensor that requires no gradient", weight)
    return weight.to(dtype)


def _classes(logits: Tensor) -> int:
    return 2 if logits.shape[1] == 1 else logits.shape[1]


# ---- public functions -----------------------------------------------------------------------------------


def region_sums(logits: Tensor, target: Tensor, ignore_index: int | None = None) -> RegionSums:
    """Sums of softmax probabilities against labels, per image and class.

    With p = softmax(logits) and g the one-hot label, over the pixels of one image that are not ignored:
    tp = sum p g, fp = sum p (1 - g), fn = sum (1 - p) g, sum_p = tp + fp, sum_g = sum g, sum_p2 = sum p^2,
    ce = sum of -g log p. fp and fn are summed by themselves, so that confident predictions lose no digits.

    Args:
        logits: [N, C, *spatial], float32, float64, bfloat16 or float16, any strides, any number of spatial axes.
            C = 1 stands for softmax over (0, z), the sigmoid of z: two classes.
        target: labels [N, *spatial], uint8 to int64 or bool, in 0..classes - 1 or `ignore_index`.
        ignore_index: label of pixels that enter no sum. None: there is none.

    Returns:
        RegionSums of tensors [N, classes], float32 (float64 for float64 logits).

    Raises:
        TypeError: a dtype or device does not fit.
        ValueError: a shape does not fit.
        RuntimeError: a label is not defined (on the CPU).

    Equivalent to: ``p = logits.softmax(1); g = one_hot(target)`` and the sums above over the spatial axes.

    Source: Budak et al. 2021, Eq. 5 to 9.
    """
    _check_inputs(logits, target, ignore_index)
    s = reference.Sums(*_library.serve("region_sums", logits, target, ignore_index).unbind(0))
    return RegionSums(s.tp, s.tp + s.fp, s.count, s.sum_p2, s.ce, s.fp, s.fn)


def loss_from_sums(
    sums: RegionSums,
    kind: str = "tversky",
    alpha: float = ALPHA,
    beta: float = BETA,
    gamma: float = 1.0,
    eps: float = EPS,
    reduce_over: str = "image",
    include_background: bool = True,
    weight: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """A region loss from its sums, for when the sums of several processes are added first.

    Args:
        sums: from `region_sums`, or several of them added or concatenated over N.
        kind: "tversky" (soft Dice with alpha = beta = 0.5, focal with gamma != 1), "literal_dice",
            "generalized_dice" or "cross_entropy"; the formulas stand at the loss functions.
        alpha: weight of false positives. beta: weight of false negatives. gamma: the exponent is 1 / gamma.
        eps: positive. reduce_over, include_background, weight: as in `tversky_loss`.

    Returns:
        The scalar loss in the dtype of the sums.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Equivalent to: the loss function of that name on the logits and labels the sums came from.
    """
    if not isinstance(sums, RegionSums):
        raise wrong_type("sums", "RegionSums", sums)
    check_choice("kind", kind, KINDS)
    check_options(alpha, beta, gamma, eps, reduce_over, include_background)
    for name, value in sums._asdict().items():
        check_tensor(f"sums.{name}", value, (2,))
        if value.dtype not in (torch.float32, torch.float64):
            raise wrong_type(f"sums.{name}", "dtype float32 or float64", value)
        for what in ("shape", "dtype", "device"):
            check_same(what, f"sums.{name}", value, "sums.tp", sums.tp)
    if sums.tp.shape[1] < 2:
        raise wrong_value("sums.tp", "shape [N, classes] with at least 2 classes", sums.tp)
    rows = torch.stack((sums.tp, sums.fp, sums.fn, sums.sum_g, sums.sum_p2, sums.ce))
    weight = _weight_like(weight, rows.shape[2], rows)
    return _library.serve(
        "loss_from_sums",
        rows,
        weight,
        KINDS[kind],
        float(alpha),
        float(beta),
        float(gamma),
        float(eps),
        reduce_over == "batch",
        include_background,
    )[0]


def _region_loss(
    kind: int,
    logits: Tensor,
    target: Tensor,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    eps: float = EPS,
    reduce_over: str = "image",
    include_background: bool = True,
    ignore_index: int | None = None,
    weight: Tensor | Sequence[float] | None = None,
) -> Tensor:
    check_options(alpha, beta, gamma, eps, reduce_over, include_background)
    options = (
        float(alpha),
        float(beta),
        float(gamma),
        float(eps),
        reduce_over == "batch",
        include_background,
    )
    return _serve_loss(kind, logits, target, ignore_index, weight, options)


#: Of a loss that has none: `_region_loss`'s own.
_NO_OPTIONS = (0.5, 0.5, 1.0, EPS, False, True)


def _serve_loss(
    kind: int,
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None,
    weight: Tensor | Sequence[float] | None,
    options: tuple[object, ...],
) -> Tensor:
    _check_inputs(logits, target, ignore_index)
    if weight is not None:
        weight = _weight_like(weight, _classes(logits), logits)
    return _library.serve(
        "region_loss",
        logits,
        target,
        weight,
        ignore_index,
        kind,
        *options,
    )[0]


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    alpha: float = ALPHA,
    beta: float = BETA,
    eps: float = EPS,
    reduce_over: str = "image",
    include_background: bool = True,
    ignore_index: int | None = None,
    weight: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """Tversky loss: one minus the Tversky index, summed over the classes.

    TS_c = (tp + eps) / (tp + alpha fp + beta fn + eps);  loss = mean over images of sum_c weight_c (1 - TS_c).
    The sums tp, fp, fn of class c are those of `region_sums`. alpha weighs false positives, beta false negatives.

    Args:
        logits, target, ignore_index: as in `region_sums`.
        alpha: weight of false positives, at least 0.
        beta: weight of false negatives, at least 0. Larger than alpha, it raises the sensitivity.
        eps: positive; keeps the index of an absent class at 1.
        reduce_over: "image": the loss of each image, then their mean; "batch": sums over the whole batch first.
        include_background: whether class 0 counts.
        weight: one number per class (two for C = 1), background included; not normalised.

    Returns:
        The scalar loss, float32 (float64 for float64 logits); 0 for a batch of no images. Value and gradient are
        finite for finite logits, empty and full masks included.

    Raises:
        TypeError, ValueError: an argument does not fit.
        RuntimeError: a label is not defined (on the CPU).

    Equivalent to: ``(1 - TS).sum(1).mean()`` on the sums of ``logits.softmax(1)``.

    Source: Budak et al. 2021, Eq. 6 and 7; Salehi et al. 2017.
    """
    return _region_loss(
        reference.TVERSKY,
        logits,
        target,
        alpha,
        beta,
        1.0,
        eps,
        reduce_over,
        include_background,
        ignore_index,
        weight,
    )


def focal_tversky_loss(
    logits: Tensor,
    target: Tensor,
    alpha: float = ALPHA,
    beta: float = BETA,
    gamma: float = GAMMA,
    eps: float = EPS,
    reduce_over: str = "image",
    include_background: bool = True,
    ignore_index: int | None = None,
    weight: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """Focal Tversky loss: each class's Tversky loss to the power 1 / gamma.

    u_c = 1 - TS_c = (alpha fp + beta fn) / (tp + alpha fp + beta fn + eps);
    loss = mean over images of sum_c weight_c u_c^(1/gamma), whose gradient is defined as 0 where u_c = 0.

    Args:
        gamma: positive, in the source 1 to 3; the exponent is 1 / gamma, 3/4 by default.
        others: as in `tversky_loss`.

    Returns, Raises: as `tversky_loss`.

    Equivalent to: ``((1 - TS) ** (1 / gamma)).sum(1).mean()``, with a finite gradient where TS = 1.

    Source: Budak et al. 2021, Eq. 8 and 9; Abraham and Khan 2019 (who swap alpha and beta).
    """
    return _region_loss(
        reference.TVERSKY,
        logits,
        target,
        alpha,
        beta,
        gamma,
        eps,
        reduce_over,
        include_background,
        ignore_index,
        weight,
    )


def dice_loss(
    logits: Tensor,
    target: Tensor,
    variant: str = "soft",
    eps: float = EPS,
    reduce_over: str = "image",
    include_background: bool = True,
    ignore_index: int | None = None,
    weight: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """Dice loss: one minus the Dice coefficient of probabilities, summed over the classes.

    "soft":    loss_c = 1 - (tp + eps) / (tp + fp / 2 + fn / 2 + eps), the Tversky loss with alpha = beta = 0.5,
               hence 1 - (2 tp + 2 eps) / (sum_p + sum_g + 2 eps).
    "literal": loss_c = 1 - (tp + eps) / (sum_p + sum_g + eps), as printed, without the factor 2: at best 1/2.

    Args:
        variant: "soft" or "literal".
        others: as in `tversky_loss`.

    Returns, Raises: as `tversky_loss`.

    Equivalent to: ``tversky_loss(logits, target, 0.5, 0.5)`` for "soft".

    Source: Budak et al. 2021, Eq. 4 and 5 (whose factor 2 was lost in print).
    """
    check_choice("variant", variant, DICE_KINDS)
    kind = KINDS[DICE_KINDS[variant]]
    return _region_loss(
        kind, logits, target, 0.5, 0.5, 1.0, eps, reduce_over, include_background, ignore_index, weight
    )


def generalized_dice_loss(
    logits: Tensor,
    target: Tensor,
    eps: float = EPS_GENERALIZED_DICE,
    reduce_over: str = "image",
    include_background: bool = True,
    ignore_index: int | None = None,
    weight: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """Generalised Dice loss: classes weighted by the inverse square of their size.

    w_c = weight_c / max(eps, sum_g^2);
    loss = mean over images of 1 - (2 sum_c w_c tp + eps) / (sum_c w_c (sum_p2 + sum_g) + eps).
    A class that an image lacks gets the weight 1/eps, which brings that image's loss near 1.

    Args:
        eps: positive; by default MATLAB's single-precision eps.
        weight: multiplies w_c.
        others: as in `tversky_loss`.

    Returns, Raises: as `tversky_loss`.

    Equivalent to: the formula on ``p = logits.softmax(1)``, which is what MATLAB's Dice layer computes.

    Source: Sudre et al. 2017; Budak et al. 2021, Eq. 4 and 5.
    """
    return _region_loss(
        reference.GENERALIZED_DICE,
        logits,
        target,
        eps=eps,
        reduce_over=reduce_over,
        include_background=include_background,
        ignore_index=ignore_index,
        weight=weight,
    )


def cross_entropy_loss(
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None = None,
    weight: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """Cross-entropy, averaged over the pixels of the batch that are not ignored.

    loss = sum_i weight[t_i] (-log p_i[t_i]) / sum_i weight[t_i], over the pixels i with labels t_i.

    Args:
        logits, target, ignore_index: as in `region_sums`.
        weight: one number per class (two for C = 1).

    Returns:
        The scalar loss, float32 (float64 for float64 logits); 0 where the weights of the pixels sum to 0, as when
        every pixel is ignored.

    Raises: as `tversky_loss`.

    Equivalent to: ``torch.nn.functional.cross_entropy(logits, target, weight, ignore_index=ignore_index)``.

    Source: Budak et al. 2021, Eq. 3.
    """
    return _serve_loss(reference.CROSS_ENTROPY, logits, target, ignore_index, weight, _NO_OPTIONS)


# ---- ops ------------------------------------------------------------------------------------------------

_OPTIONS = (
    "int kind, float alpha, float beta, float gamma, float eps, bool pool_batch, bool include_background"
)


def _sums_backward_kernel(
    grad_sums: Tensor, logits: Tensor, target: Tensor, ignore_index: int | None
) -> Tensor:
    found = reference.region_sums_backward(grad_sums, logits, target, ignore_index)
    return torch.empty_like(logits).copy_(found)


def _loss_backward_kernel(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    coefficients: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *options: object,
) -> Tensor:
    return _sums_backward_kernel(grad * coefficients, logits, target, ignore_index)


_TRITON = f"{__package__}.triton_kernels"
_library.define(
    "region_sums",
    "(Tensor logits, Tensor target, int? ignore_index) -> Tensor",
    reference.region_sums,
    layout_of=None,
    triton=_TRITON,
)
_sums_backward = _library.define(
    "region_sums_backward",
    "(Tensor grad_sums, Tensor logits, Tensor target, int? ignore_index) -> Tensor",
    _sums_backward_kernel,
    layout_of=None,
    listed=False,
    triton=_TRITON,
)
_library.define(
    "loss_from_sums",
    f"(Tensor sums, Tensor? weight, {_OPTIONS}) -> (Tensor loss, Tensor coefficients)",
    reference.loss_and_coefficients,
    layout_of=None,
    triton=_TRITON,
)
_library.define(
    "region_loss",
    f"(Tensor logits, Tensor target, Tensor? weight, int? ignore_index, {_OPTIONS})"
    " -> (Tensor loss, Tensor coefficients)",
    reference.region_loss,
    layout_of=None,
    triton=_TRITON,
)
_loss_backward = _library.define(
    "region_loss_backward",
    "(Tensor grad, Tensor logits, Tensor target, Tensor coefficients, Tensor? weight, int? ignore_index,"
    f" {_OPTIONS}) -> Tensor",
    _loss_backward_kernel,
    layout_of=None,
    listed=False,
    triton=_TRITON,
)

# ---- shapes without data --------------------------------------------------------------------------------


def _sums_fake(logits: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
    rows = len(reference.Sums._fields)
    return logits.new_empty(rows, logits.shape[0], _classes(logits), dtype=reference.sums_dtype(logits.dtype))


def _loss_from_sums_fake(sums: Tensor, *options: object) -> tuple[Tensor, Tensor]:
    return sums.new_empty(()), sums.new_empty(sums.shape)


def _loss_fake(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int | None, *options: object
) -> tuple[Tensor, Tensor]:
    return _loss_from_sums_fake(_sums_fake(logits, target, ignore_index))


def _backward_fake(grad: Tensor, logits: Tensor, *others: object) -> Tensor:
    return torch.empty_like(logits)


_library.register_fake("region_sums", _sums_fake)
_library.register_fake("region_sums_backward", _backward_fake)
_library.register_fake("loss_from_sums", _loss_from_sums_fake)
_library.register_fake("region_loss", _loss_fake)
_library.register_fake("region_loss_backward", _backward_fake)

# ---- gradients ------------------------------------------------------------------------------------------


def _save_sums_inputs(ctx, inputs, output) -> None:
    logits, target, ctx.ignore_index = inputs
    ctx.save_for_backward(logits, target)


def _grad_of_sums(ctx, grad_sums: Tensor) -> tuple[Tensor, None, None]:
    backward = _library.same(ctx, _sums_backward)
    return backward(grad_sums, *ctx.saved_tensors, ctx.ignore_index), None, None


def _save_sums(ctx, inputs, output) -> None:
    sums, weight, *ctx.options = inputs
    ctx.save_for_backward(sums, weight, output[1])


def _grad_of_loss_from_sums(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    sums, weight, coefficients = ctx.saved_tensors
    if torch.is_grad_enabled():  # a second derivative is wanted: make them as a function of the sums
        coefficients = reference.loss_coefficients(sums, weight, *ctx.options)
    return grad * coefficients, None, *(None for _ in ctx.options)


def _save_loss_inputs(ctx, inputs, output) -> None:
    logits, target, weight, ctx.ignore_index, *ctx.options = inputs
    ctx.save_for_backward(logits, target, output[1], weight)


def _grad_of_loss(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    found = _library.same(ctx, _loss_backward)(grad, *ctx.saved_tensors, ctx.ignore_index, *ctx.options)
    return found, None, None, None, *(None for _ in ctx.options)


_library.register_autograd("region_sums", _grad_of_sums, _save_sums_inputs)
_library.register_autograd("loss_from_sums", _grad_of_loss_from_sums, _save_sums)
_library.register_autograd("region_loss", _grad_of_loss, _save_loss_inputs)
_library.register_autograd_by_reference("region_sums_backward", reference.region_sums_backward)
_library.register_autograd_by_reference("region_loss_backward", reference.region_loss_backward)
