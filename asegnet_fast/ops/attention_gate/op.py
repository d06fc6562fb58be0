"""The attention gate of an A-SegNet's skip connection (Budak et al. 2021, Eq. 1 and 2).

The forward op also returns what its gradient needs: `mask`, one bit [s > 0] per pixel and intermediate channel,
with which the additive gate forms neither s nor g's resized map again; and for half inputs `gate`, alpha in
float32, since 1 - alpha has few bits left where a rounded alpha is near 1. Backward is an op of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from asegnet_fast.ops import _library
from asegnet_fast.ops._checks import (
    check_choice,
    check_float,
    check_same,
    check_tensor,
    wrong_value,
)
from asegnet_fast.ops._layout import memory_format
from asegnet_fast.ops.attention_gate import reference

MODES = ("additive", "multiplicative")
UPSAMPLES = ("bilinear", "nearest")

# ---- checks ---------------------------------------------------------------------------------------------


def _matrix(name: str, weight: Tensor, channels: int | None, source: str | None) -> Tensor:
    """[F, C] from [F, C], [F, C, 1, 1] or [F, C, 1, 1, 1]."""
    check_tensor(name, weight, (2, 4, 5))
    if weight.dim() > 2:
        if weight.shape[2:].numel() != 1:
            raise wrong_value(name, "shape [F, C], [F, C, 1, 1] or [F, C, 1, 1, 1]", weight)
        weight = weight.flatten(1)
    if weight.shape[0] == 0 or weight.shape[1] != channels:
        raise wrong_value(
            name, f"shape [F, {channels}] with F >= 1, since {source} has {channels} channels", weight
        )
    return weight


def _vector(name: str, value: Tensor, length: int) -> Tensor:
    """[length] from [length]; for w_psi also from a convolution's [1, length, 1, 1] or [1, length, 1, 1, 1]."""
    check_tensor(name, value)
    shapes = [(length,)]
    if name == "w_psi":
        shapes += [(1, length, 1, 1), (1, length, 1, 1, 1)]
    if tuple(value.shape) not in shapes:
        raise wrong_value(name, f"shape {' or '.join(map(str, shapes))}", value)
    return value.flatten()


def _check_maps(x: Tensor, g: Tensor) -> None:
    check_tensor("x", x, (4, 5))
    check_tensor("g", g, (x.dim(),))
    if x.shape[1] == 0:
        raise wrong_value("x", "at least one channel", x)
    if g.shape[1] == 0 or g.shape[0] != x.shape[0]:
        raise wrong_value("g", f"{x.shape[0]} images, as x, and at least one channel", g)
    for fine, coarse in zip(x.shape[2:], g.shape[2:], strict=True):
        if not (0 if fine == 0 else 1) <= coarse <= fine:
            raise wrong_value("g", f"x's sides, {tuple(x.shape[2:])}, or a coarser map", g)


def _check_dtypes(tensors: dict[str, Tensor]) -> None:
    x = tensors["x"]
    autocast = _library.autocast_is_on(x.device.type)
    for name, tensor in tensors.items():
        check_float(name, tensor)
        check_same("device", name, tensor, "x", x)
        # Autocast casts all but float64 to one dtype.
        if not autocast or torch.float64 in (x.dtype, tensor.dtype):
            check_same("dtype", name, tensor, "x", x)


# ---- public function ------------------------------------------------------------------------------------


def attention_gate(
    x: Tensor,
    g: Tensor,
    w_x: Tensor,
    w_g: Tensor,
    b_g: Tensor,
    w_psi: Tensor,
    b_psi: Tensor,
    mode: str = "additive",
    upsample: str = "bilinear",
) -> tuple[Tensor, Tensor]:
    """Scale each pixel of a skip connection by how much a coarser map attends to it.

        s     = relu(Wx x + up(Wg g + b_g))         additive
        s     = relu(Wx x * up(Wg g + b_g))         multiplicative (elementwise)
        alpha = sigmoid(w_psi . s + b_psi)
        out   = alpha * x

    Args:
        x: [N, Cx, H, W] or [N, Cx, D, H, W], the skip connection; float32, float64, bfloat16 or float16, any strides.
        g: [N, Cg, Hg, Wg] or [N, Cg, Dg, Hg, Wg], the gating map, no side longer than x's, in any ratio.
        w_x: [F, Cx], or a 1x1 convolution's weight.
        w_g: [F, Cg], or a 1x1 convolution's weight.
        b_g: [F].
        w_psi: [F], or the weight of a 1x1 convolution to one channel.
        b_psi: [1].
        mode: "additive" or "multiplicative".
        upsample: how g reaches x's size, "bilinear" (align_corners=False; trilinear for volumes) or "nearest".
            Volumes of different sizes are resized by PyTorch, after the projection to F channels.

    Returns:
        (out, alpha): out in x's shape, dtype and memory format; alpha [N, 1, ...] in 0..1. Both have gradients. Half
        inputs are summed in float32. Under autocast all inputs but float64 ones are cast to its dtype, which is
        then that of the results.

    Raises:
        TypeError: an argument is not a dense float tensor, or dtypes or devices differ.
        ValueError: a shape does not fit, g is finer than x, or mode or upsample is another word.

    Equivalent to::

        up = F.interpolate(F.conv2d(g, w_g, b_g), size=x.shape[-2:], mode="bilinear")
        alpha = F.conv2d(F.relu(F.conv2d(x, w_x) + up), w_psi, b_psi).sigmoid()
        out = alpha * x

    Source: Budak et al. 2021, Eq. 1 and 2; Oktay et al. 2018, section 2.
    """
    check_choice("mode", mode, MODES)
    check_choice("upsample", upsample, UPSAMPLES)
    _check_maps(x, g)
    w_x = _matrix("w_x", w_x, x.shape[1], "x")
    w_g = _matrix("w_g", w_g, g.shape[1], "g")
    if w_g.shape[0] != w_x.shape[0]:
        raise wrong_value("w_g", f"as many rows as w_x, {w_x.shape[0]}", w_g)
    b_g, w_psi = (_vector(n, t, w_x.shape[0]) for n, t in (("b_g", b_g), ("w_psi", w_psi)))
    b_psi = _vector("b_psi", b_psi, 1)
    tensors = {"x": x, "g": g, "w_x": w_x, "w_g": w_g, "b_g": b_g, "w_psi": w_psi, "b_psi": b_psi}
    _check_dtypes(tensors)
    if x.dim() == 5:
        return _of_volumes(*tensors.values(), mode, upsample)
    if _library.use_reference():
        return _reference(tensors, mode, upsample)
    forward = _library.serving(_forward, x)
    out, alpha, _, _ = forward(*tensors.values(), mode == "multiplicative", upsample == "nearest")
    return out, alpha


def _of_volumes(
    x: Tensor,
    g: Tensor,
    w_x: Tensor,
    w_g: Tensor,
    b_g: Tensor,
    w_psi: Tensor,
    b_psi: Tensor,
    mode: str,
    upsample: str,
) -> tuple[Tensor, Tensor]:
    """The gate of [N, C, D, H, W]: pixel by pixel it is that of maps of D * H rows."""
    if g.shape[2:] != x.shape[2:]:
        options = (
            {"mode": "nearest"} if upsample == "nearest" else {"mode": "trilinear", "align_corners": False}
        )
        g = F.interpolate(F.conv3d(g, w_g[:, :, None, None, None], b_g), size=x.shape[2:], **options)
        w_g, b_g = torch.eye(len(w_g), dtype=w_g.dtype, device=w_g.device), torch.zeros_like(b_g)
    sides = x.shape[2:4]
    rows = (x.flatten(2, 3), g.flatten(2, 3))
    out, alpha = attention_gate(*rows, w_x, w_g, b_g, w_psi, b_psi, mode, upsample)
    return out.unflatten(2, sides), alpha.unflatten(2, sides)


def _reference(tensors: dict[str, Tensor], mode: str, upsample: str) -> tuple[Tensor, Tensor]:
    device = tensors["x"].device.type
    if not _library.autocast_is_on(device) or tensors["x"].dtype == torch.float64:
        return reference.attention_gate(*tensors.values(), mode, upsample)
    # Left to autocast, the product alpha * x would come out in x's dtype, unlike the op's.
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return reference.attention_gate(*(t.to(dtype) for t in tensors.values()), mode, upsample)


# ---- ops ------------------------------------------------------------------------------------------------


def _empty(like: Tensor) -> Tensor:
    """A result of that shape and memory format."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device, memory_format=memory_format(like))


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """`value` in the strides that `_empty(like)` has, which torch's own operations do not always give."""
    result = _empty(like)
    return value if value.stride() == result.stride() else result.copy_(value)


def _gate_shape(x: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of the saved gate; alpha itself serves where it is not rounded."""
    n, _, height, width = x.shape
    half = x.dtype in (torch.bfloat16, torch.float16)
    return ((n, 1, height, width), torch.float32) if half else ((0,), x.dtype)


def _reference_forward(x: Tensor, g: Tensor, *rest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *weights, multiplicative, nearest = rest
    out, alpha = reference.attention_gate(x, g, *weights, MODES[int(multiplicative)], UPSAMPLES[int(nearest)])
    mask = reference.active_bits(x, g, *weights[:3], multiplicative, nearest)
    shape, dtype = _gate_shape(x)
    gate = alpha.to(dtype) if len(shape) == 4 else alpha.new_empty(shape)
    return _laid_out(out, x), alpha.contiguous(), gate.contiguous(), mask.contiguous()


def _reference_backward(dout: Tensor, dalpha: Tensor, x: Tensor, g: Tensor, *rest) -> tuple[Tensor, ...]:
    dx, dg, *others = reference.attention_gate_backward(dout, dalpha, x, g, *rest)
    return _laid_out(dx, x), _laid_out(dg, g), *(d.contiguous() for d in others)


_TRITON = f"{__package__}.triton_kernels"
_INPUTS = "Tensor x, Tensor g, Tensor w_x, Tensor w_g, Tensor b_g, Tensor w_psi, Tensor b_psi"
_forward = _library.define(
    "attention_gate",
    f"({_INPUTS}, bool multiplicative, bool nearest) -> (Tensor, Tensor, Tensor, Tensor)",
    _reference_forward,
    layout_of=None,
    triton=_TRITON,
)
_backward = _library.define(
    "attention_gate_backward",
    f"(Tensor dout, Tensor dalpha, {_INPUTS}, Tensor gate, Tensor mask, bool multiplicative, bool nearest)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _reference_backward,
    layout_of=None,
    listed=False,
    triton=_TRITON,
)

# ---- shapes without data --------------------------------------------------------------------------------


def _forward_fake(x, g, w_x, w_g, b_g, w_psi, b_psi, multiplicative, nearest):
    n, _, height, width = x.shape
    mask_bytes = 0 if multiplicative else (w_x.shape[0] + 7) // 8
    gate_shape, gate_dtype = _gate_shape(x)
    return (
        _empty(x),
        x.new_empty((n, 1, height, width)),
        x.new_empty(gate_shape, dtype=gate_dtype),
        x.new_empty((n, height, width, mask_bytes), dtype=torch.uint8),
    )


def _backward_fake(dout, dalpha, x, g, *rest):
    return _empty(x), _empty(g), *(w.new_empty(w.shape) for w in rest[:5])


_library.register_fake("attention_gate", _forward_fake)
_library.register_fake("attention_gate_backward", _backward_fake)

# ---- gradients and autocast -----------------------------------------------------------------------------


def _save(ctx, inputs, output) -> None:
    _, alpha, gate, mask = output
    ctx.rounded = gate.dim() == 4
    ctx.save_for_backward(*inputs[:7], gate if ctx.rounded else alpha, mask)
    ctx.flags = inputs[7:]


def _gradients(
    ctx, dout: Tensor | None, dalpha: Tensor | None, dgate: Tensor | None, dmask: None
) -> tuple[Tensor | None, ...]:
    x, gate = ctx.saved_tensors[0], ctx.saved_tensors[7]
    dout = torch.zeros_like(x) if dout is None else dout
    dalpha = torch.zeros_like(gate, dtype=x.dtype) if dalpha is None else dalpha
    if ctx.rounded and dgate is not None:  # a second derivative reaches alpha through the saved gate
        dalpha = dalpha + dgate.to(dalpha.dtype)
    backward = _library.same(ctx, _backward)
    return (*backward(dout, dalpha, *ctx.saved_tensors, *ctx.flags), None, None)


_library.register_autograd("attention_gate", _gradients, _save)
_library.register_autograd_by_reference("attention_gate_backward", reference.attention_gate_backward)
_library.register_autocast("attention_gate")
