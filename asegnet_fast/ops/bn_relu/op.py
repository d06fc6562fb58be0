"""Batch normalisation and ReLU, and the same with the 2x2 max-pool that ends a section of an encoder.

Forward reads the map for its statistics, reads it again and writes the result; backward reads map and gradient for
two sums a channel, reads both again and writes the gradient. The ReLU's mask is made anew from the map, so y is not
kept; with the pool, the full-size y need not even be written, and no gradient of its size is.

The ops have no side effect: they return the statistics, and the public functions update the running ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asegnet_fast.ops import _library
from asegnet_fast.ops._checks import check_float, check_same, check_tensor, wrong_type, wrong_value
from asegnet_fast.ops._layout import memory_format
from asegnet_fast.ops.bn_relu import reference

# ---- checks ---------------------------------------------------------------------------------------------


def check_tensors(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Raise TypeError or ValueError unless kinds, shapes, dtypes and devices fit together."""
    check_tensor("x", x, (4,))
    check_float("x", x)
    channels, dtype, device = (x.shape[1],), x.dtype, x.device
    for name, value in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if value is None:
            continue
        check_tensor(name, value)
        if value.shape != channels:
            raise wrong_value(name, f"shape {channels}, one number per channel of x", value)
        if value.dtype != dtype and (value.dtype != torch.float32 or dtype == torch.float64):
            raise wrong_type(name, "the dtype of x, or float32 for a half x", value)
        if value.device != device:
            check_same("device", name, value, "x", x)
        if value.requires_grad and name.startswith("running") and torch.is_grad_enabled():
            raise wrong_value(name, "a tensor that requires no gradient", value)
    if (running_mean is None) != (running_var is None):
        raise wrong_value(
            "running_var", "a tensor where running_mean is one, and None where it is", running_var
        )


def _check(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
) -> None:
    check_tensors(x, running_mean, running_var, weight, bias)
    if not isinstance(training, bool):
        raise wrong_type("training", "a bool", training)
    if training:
        if x.shape[0] * x.shape[2] * x.shape[3] == 1:
            raise wrong_value("x", "more than 1 value per channel when training", x)
    elif running_mean is None:
        raise wrong_value("running_mean", "a tensor when not training", None)


def check_sides(x: Tensor) -> None:
    """Raise ValueError unless x has a channel and sides that a 2x2 window fits."""
    if x.shape[2] < 2 or x.shape[3] < 2 or x.shape[1] == 0:
        raise wrong_value("x", "at least one channel and sides of at least 2", x)


# ---- public functions -----------------------------------------------------------------------------------


def _update(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    mean: Tensor,
    var: Tensor,
) -> None:
    count = x.shape[0] * x.shape[2] * x.shape[3]
    if running_mean is None or count == 0 or x.shape[1] == 0:
        return
    move_running(running_mean, running_var, momentum, mean, var, count / (count - 1))


def move_running(
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    mean: Tensor,
    var: Tensor,
    unbias: float | Tensor,
) -> None:
    """Move the running statistics towards a batch's, with the unbiased variance `unbias` * var, as torch does."""
    with torch.no_grad():
        running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
        running_var.mul_(1 - momentum).add_(var * unbias, alpha=momentum)


def bn_relu(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
) -> Tensor:
    """Normalise each channel, scale and shift it, and cut it off below zero.

    y = max(0, weight * (x - mean) / sqrt(var + eps) + bias), with mean and biased variance of each channel over
    N, H and W in training, and the running ones otherwise. Training moves the running statistics in place:
    running = (1 - momentum) * running + momentum * batch, with the unbiased variance.

    Args:
        x: [N, C, H, W], float32, float64, bfloat16 or float16, any strides; NCHW and channels_last are kept.
        running_mean, running_var: [C], x's dtype, or float32 for a half x; None (both) in training: none are kept.
        weight, bias: [C], x's dtype, or float32 for a half x; None: 1 and 0.
        training: whether the batch's own statistics count.
        momentum: weight of the batch in the running statistics. eps: added to the variance.
        relu: False leaves the ReLU out.

    Returns:
        y, in x's shape, dtype and memory format. Statistics and sums are float32 (float64 for float64); a large
        mean does not spoil the variance. Where y is 0 the gradient is 0; NaN stays NaN.

    Raises:
        TypeError: wrong kinds of tensors, dtypes or devices. ValueError: a shape does not fit, x has one value per
            channel in training, or running statistics are missing otherwise.

    Equivalent to: ``F.relu(F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps))``.

    Source: Ioffe and Szegedy 2015, Algorithms 1 and 2; Badrinarayanan et al. 2017 (SegNet), section 3.
    """
    _check(x, running_mean, running_var, weight, bias, training)
    if _library.use_reference():
        return reference.plain(x, running_mean, running_var, weight, bias, training, momentum, eps, relu)
    serving = _library.serving(_bn_relu, x)
    y, mean, var = serving(x, weight, bias, running_mean, running_var, training, eps, relu)
    if training:
        _update(x, running_mean, running_var, momentum, mean, var)
    return y


def bn_relu_max_pool2x2(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = True,
    return_full: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """`bn_relu` and the 2x2 max-pool of its result with positions, in the same pass.

    pooled[i, j] = max of y[2i .. 2i+1, 2j .. 2j+1]; code is its position 2*dy + dx, the first of equals, the last NaN.

    Args:
        x: as for `bn_relu`, sides of at least 2; the last row or column of an odd side enters the statistics only.
        return_full: whether y is wanted as well. Without it, y is never written.
        others: as for `bn_relu`.

    Returns:
        (pooled, code), or (y, pooled, code) with `return_full`: pooled [N, C, H // 2, W // 2] as x, code uint8 0..3.

    Raises:
        TypeError, ValueError: as `bn_relu`, and for sides shorter than 2.

    Equivalent to: ``F.max_pool2d(bn_relu(x, ...), 2, return_indices=True)``, with codes for indices.

    Source: Ioffe and Szegedy 2015; Badrinarayanan et al. 2017 (SegNet), section 3.
    """
    _check(x, running_mean, running_var, weight, bias, training)
    check_sides(x)
    if _library.use_reference():
        y, pooled, code = reference.plain_max_pool2x2(
            x, running_mean, running_var, weight, bias, training, momentum, eps, relu
        )
    else:
        serving = _library.serving(_bn_relu_pool, x)
        y, pooled, code, mean, var = serving(
            x, weight, bias, running_mean, running_var, training, eps, relu, return_full
        )
        if training:
            _update(x, running_mean, running_var, momentum, mean, var)
    return (y, pooled, code) if return_full else (pooled, code)


# ---- ops ------------------------------------------------------------------------------------------------

_INPUTS = "Tensor x, Tensor? weight, Tensor? bias"
_OPTIONS = "bool training, float eps, bool relu"
_RUNNING = "Tensor? running_mean, Tensor? running_var"

_TRITON = f"{__package__}.triton_kernels"
_bn_relu = _library.define(
    "bn_relu",
    f"({_INPUTS}, {_RUNNING}, {_OPTIONS}) -> (Tensor y, Tensor mean, Tensor var)",
    reference.bn_relu,
    triton=_TRITON,
)
_bn_relu_backward = _library.define(
    "bn_relu_backward",
    f"(Tensor dy, {_INPUTS}, Tensor mean, Tensor var, {_OPTIONS}) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    reference.bn_relu_backward,
    layout_of=1,
    listed=False,
    triton=_TRITON,
)
_bn_relu_pool = _library.define(
    "bn_relu_max_pool2x2",
    f"({_INPUTS}, {_RUNNING}, {_OPTIONS}, bool full)"
    " -> (Tensor y, Tensor pooled, Tensor code, Tensor mean, Tensor var)",
    reference.bn_relu_max_pool2x2,
    triton=_TRITON,
)
_bn_relu_pool_backward = _library.define(
    "bn_relu_max_pool2x2_backward",
    f"(Tensor dpooled, Tensor? dy, Tensor code, {_INPUTS}, Tensor mean, Tensor var, {_OPTIONS})"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    reference.bn_relu_max_pool2x2_backward,
    layout_of=3,
    listed=False,
    triton=_TRITON,
)

# ---- shapes without data --------------------------------------------------------------------------------


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers a channel."""
    dtype = reference.sums_dtype(x.dtype)
    return tuple(x.new_empty(x.shape[1], dtype=dtype) for _ in range(2))


def _fake(x: Tensor, *others: object) -> tuple[Tensor, ...]:
    return _like(x), *_sums(x)


def _backward_fake(dy: Tensor, x: Tensor, *others: object) -> tuple[Tensor, ...]:
    return _like(x), *_sums(x)


def _pool_fake(x: Tensor, *others: object) -> tuple[Tensor, ...]:
    sides = (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
    pooled, code = (
        torch.empty(sides, dtype=dtype, device=x.device, memory_format=memory_format(x))
        for dtype in (x.dtype, torch.uint8)
    )
    return _like(x) if others[-1] else x.new_empty(0), pooled, code, *_sums(x)


def _pool_backward_fake(
    dpooled: Tensor, dy: Tensor | None, code: Tensor, x: Tensor, *others: object
) -> tuple[Tensor, ...]:
    return _like(x), *_sums(x)


_library.register_fake("bn_relu", _fake)
_library.register_fake("bn_relu_backward", _backward_fake)
_library.register_fake("bn_relu_max_pool2x2", _pool_fake)
_library.register_fake("bn_relu_max_pool2x2_backward", _pool_backward_fake)

# ---- gradients ------------------------------------------------------------------------------------------


def as_parameters(weight: Tensor | None, bias: Tensor | None, dweight: Tensor, dbias: Tensor) -> tuple:
    """The sums as gradients of the parameters: their dtype, and none where there is no parameter."""
    return (
        None if weight is None else dweight.to(weight.dtype),
        None if bias is None else dbias.to(bias.dtype),
    )


def _save(ctx, inputs, output) -> None:
    x, weight, bias, _, _, *ctx.options = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, mean, var)


def _grad(ctx, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 8
    x, weight, bias, mean, var = ctx.saved_tensors
    backward = _library.same(ctx, _bn_relu_backward)
    dx, dweight, dbias = backward(dy, x, weight, bias, mean, var, *ctx.options)
    return dx, *as_parameters(weight, bias, dweight, dbias), None, None, None, None, None


def _save_pool(ctx, inputs, output) -> None:
    x, weight, bias, _, _, *ctx.options, full = inputs
    y, _, code, mean, var = output
    ctx.mark_non_differentiable(code, mean, var, *(() if full else (y,)))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(code, x, weight, bias, mean, var)


def _grad_pool(ctx, dy: Tensor | None, dpooled: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None and dpooled is None:
        return (None,) * 9
    code, x, weight, bias, mean, var = ctx.saved_tensors
    if dpooled is None:
        found = _library.same(ctx, _bn_relu_backward)(dy, x, weight, bias, mean, var, *ctx.options)
    else:
        backward = _library.same(ctx, _bn_relu_pool_backward)
        found = backward(dpooled, dy, code, x, weight, bias, mean, var, *ctx.options)
    dx, dweight, dbias = found
    return dx, *as_parameters(weight, bias, dweight, dbias), None, None, None, None, None, None


_library.register_autograd("bn_relu", _grad, _save)
_library.register_autograd("bn_relu_max_pool2x2", _grad_pool, _save_pool)
_library.register_autograd_by_reference("bn_relu_backward", reference.bn_relu_backward)
_library.register_autograd_by_reference(
    "bn_relu_max_pool2x2_backward", reference.bn_relu_max_pool2x2_backward
)
