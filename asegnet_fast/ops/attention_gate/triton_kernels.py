"""The attention gate in Triton. Each function has the arguments and results of its op.

Forward: torch (cuBLAS) makes u = Wg g + b_g on the coarse grid; one kernel then reads x once and forms Wx x, the
resizing (addresses and weights), s, the logit (a row sum), alpha, out and the mask bits; s is never stored.

Backward, additive: with m = [s > 0] from the saved bits and dz = d/d logit, nothing of forward is formed again:
dx = alpha dout + dz (m (w_psi Wx)), dWx = w_psi M with M = sum dz m x^T, and by the ReLU's homogeneity
dw_psi = rowsum(Wx M) + rowsum(Wg G) + b_g B with G = dU^T g, B = sum dU, and dU = dz m resized back. The coarse
gradient is gathered, weight gradients are sums of fixed chunks: no atomics, the same bits every time. The
multiplicative gate forms s again and stores two maps of F channels: correct, untuned.

Products take TF32 where torch's matrix products may. No GPU has run these kernels yet; they are tested in the
interpreter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from asegnet_fast.ops._layout import is_channels_last, memory_format
from asegnet_fast.ops._triton import INTERPRETED, OPTIONS, empty, power_of_2

#: Pixels, channels of x and intermediate channels of a tile, by bytes of an element. x of up to that many channels
#: stays on chip between the product and the multiplication by alpha; above, it is read again, from L2. float32
#: without TF32 and double have no tensor cores here: larger tiles spill.
TILES = {2: (64, 64, 64), 4: (32, 32, 32), 8: (16, 32, 32)}
#: Pixels of the coarse grid in a tile of its gradient: a rolled loop over the fine pixels that each gathers.
COARSE_PIXELS = 32
#: Programs that the weight gradient is cut into; each leaves one partial sum.
PROGRAMS = 512
WARPS = 4


# ---- pieces ---------------------------------------------------------------------------------------------


@triton.jit
def _dot(a, b, ACC: tl.constexpr, PRECISION: tl.constexpr):
    if INTERPRETED:  # its tl.dot takes no bfloat16
        a, b = a.to(ACC), b.to(ACC)
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def _taps(i, fine, coarse, NEAREST: tl.constexpr, ACC: tl.constexpr):
    """(lower, upper, weight of upper): where fine position i reads the coarse axis, as torch's interpolate.

    Bilinear positions, ((2 i + 1) coarse - fine) / (2 fine), are rational: integers give index and remainder exactly.
    """
    if NEAREST:
        # torch rounds the scale to float for every dtype, which decides the index where i coarse / fine is whole.
        scale = tl.div_rn(coarse.to(tl.float32), fine.to(tl.float32))
        lower = tl.minimum((i.to(tl.float32) * scale).to(i.dtype), coarse - 1)
        return lower, lower, (lower * 0).to(ACC)
    else:
        position = tl.maximum((2 * i + 1) * coarse - fine, 0)
        lower = position // (2 * fine)
        weight = (position - lower * 2 * fine).to(ACC) / (2 * fine).to(ACC)
        return lower, tl.minimum(lower + 1, coarse - 1), weight


@triton.jit
def _resized(
    u, n, y, x, height, width, coarse_h, coarse_w, f, features, exists,
    NEAREST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Rows [P, F] of u [N * coarse_h * coarse_w, features] resized at the pixels n, y, x, each [P, 1]."""
    y0, y1, wy = _taps(y.to(INDEX), height, coarse_h, NEAREST, ACC)
    x0, x1, wx = _taps(x.to(INDEX), width, coarse_w, NEAREST, ACC)
    image = n.to(tl.int64) * coarse_h
    here = exists & (f < features)
    v00 = tl.load(u + ((image + y0) * coarse_w + x0) * features + f, mask=here, other=0.0).to(ACC)
    if NEAREST:
        return v00
    else:
        v01 = tl.load(u + ((image + y0) * coarse_w + x1) * features + f, mask=here, other=0.0).to(ACC)
        v10 = tl.load(u + ((image + y1) * coarse_w + x0) * features + f, mask=here, other=0.0).to(ACC)
        v11 = tl.load(u + ((image + y1) * coarse_w + x1) * features + f, mask=here, other=0.0).to(ACC)
        return (1 - wy) * ((1 - wx) * v00 + wx * v01) + wy * ((1 - wx) * v10 + wx * v11)


@triton.jit
def _pixels(count, height, width, P: tl.constexpr):
    """The pixels of this program [P, 1]: number, image, number in the image, which exist."""
    pixel = tl.program_id(0).to(count.dtype) * P + tl.arange(0, P)[:, None]
    plane = height * width
    return pixel, pixel // plane, pixel % plane, pixel < count


@triton.jit
def _load_map(x, n, s, c, exists, channels, x_image, x_pixel, x_channel):
    at = x + n.to(tl.int64) * x_image + s.to(tl.int64) * x_pixel + c.to(tl.int64) * x_channel
    return tl.load(at, mask=exists & (c < channels), other=0.0)


@triton.jit
def _projected(
    x, w_x, n, s, f, exists, channels, features, x_image, x_pixel, x_channel,
    P: tl.constexpr, C: tl.constexpr, F: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Wx x at the pixels, [P, F]; f is [1, F]."""
    total = tl.zeros((P, F), ACC)
    for first in range(0, channels, C):
        c = first + tl.arange(0, C)
        value = _load_map(x, n, s, c[None, :], exists, channels, x_image, x_pixel, x_channel)
        w = tl.load(w_x + f * channels + c[:, None], mask=(f < features) & (c[:, None] < channels), other=0.0)
        total += _dot(value, w, ACC, PRECISION)
    return total


@triton.jit
def _mask_rows(mask, pixel, first, exists, mask_bytes, P: tl.constexpr, F: tl.constexpr):
    """Bits [P, F] (0 or 1) of channels first .. first + F of the saved mask."""
    byte = first // 8 + tl.arange(0, F // 8)[None, :]
    at = mask + pixel.to(tl.int64) * mask_bytes + byte
    packed = tl.load(at, mask=exists & (byte < mask_bytes), other=0).to(tl.int32)
    bits = (packed[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, (P, F))


# ---- forward --------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["count", "height", "width", "coarse_h", "coarse_w"])
def _forward_kernel(
    x, u, w_x, w_psi, b_psi, out, alpha, gate, mask, count, height, width, coarse_h, coarse_w, channels, features,
    mask_bytes, x_image, x_pixel, x_channel, o_image, o_pixel, o_channel,
    MULTIPLICATIVE: tl.constexpr, NEAREST: tl.constexpr, HAS_GATE: tl.constexpr, KEEP: tl.constexpr,
    INDEX: tl.constexpr, P: tl.constexpr, C: tl.constexpr, F: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pixel, n, s, exists = _pixels(count, height, width, P)
    y, column = s // width, s % width
    logit = tl.zeros((P, 1), ACC) + tl.load(b_psi).to(ACC)
    if KEEP:
        c = tl.arange(0, C)
        tile = _load_map(x, n, s, c[None, :], exists, channels, x_image, x_pixel, x_channel)
    for first in range(0, features, F):
        f = first + tl.arange(0, F)[None, :]
        if KEEP:
            w = tl.load(
                w_x + f * channels + c[:, None], mask=(f < features) & (c[:, None] < channels), other=0.0
            )
            t = _dot(tile, w, ACC, PRECISION)
        else:
            t = _projected(
                x,
                w_x,
                n,
                s,
                f,
                exists,
                channels,
                features,
                x_image,
                x_pixel,
                x_channel,
                P,
                C,
                F,
                ACC,
                PRECISION,
            )
        v = _resized(
            u, n, y, column, height, width, coarse_h, coarse_w, f, features, exists, NEAREST, INDEX, ACC
        )
        value = t * v if MULTIPLICATIVE else t + v
        active = ~(value <= 0) & (f < features)  # NaN is active, as in torch's ReLU
        w = tl.load(w_psi + f, mask=f < features, other=0.0).to(ACC)
        logit += tl.sum(tl.where(active, value * w, 0.0), 1, keep_dims=True)
        if not MULTIPLICATIVE:
            bits = tl.reshape(active.to(tl.int32), (P, F // 8, 8)) << tl.arange(0, 8)[None, None, :]
            byte = first // 8 + tl.arange(0, F // 8)[None, :]
            to = mask + pixel.to(tl.int64) * mask_bytes + byte
            tl.store(to, tl.sum(bits, 2).to(tl.uint8), mask=exists & (byte < mask_bytes))
    attention = 1 / (1 + tl.exp(-logit))
    tl.store(alpha + pixel, attention.to(alpha.dtype.element_ty), mask=exists)
    if HAS_GATE:
        tl.store(gate + pixel, attention, mask=exists)
    to = out + n.to(tl.int64) * o_image + s.to(tl.int64) * o_pixel
    if KEEP:
        value = (attention * tile.to(ACC)).to(out.dtype.element_ty)
        tl.store(to + c[None, :].to(tl.int64) * o_channel, value, mask=exists & (c[None, :] < channels))
    else:
        for first in range(0, channels, C):
            c = first + tl.arange(0, C)[None, :]
            value = _load_map(x, n, s, c, exists, channels, x_image, x_pixel, x_channel).to(ACC)
            value = (attention * value).to(out.dtype.element_ty)
            tl.store(to + c.to(tl.int64) * o_channel, value, mask=exists & (c < channels))


# ---- backward -------------------------------------------------------------------------------------------


@triton.jit
def _logit_gradient(
    dout, dalpha, x, gate, pixel, n, s, exists, channels, x_image, x_pixel, x_channel, d_image, d_pixel, d_channel,
    P: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """(dz [P, 1], alpha [P, 1])."""
    total = tl.zeros((P, C), ACC)
    for first in range(0, channels, C):
        c = first + tl.arange(0, C)[None, :]
        value = _load_map(x, n, s, c, exists, channels, x_image, x_pixel, x_channel).to(ACC)
        total += value * _load_map(dout, n, s, c, exists, channels, d_image, d_pixel, d_channel).to(ACC)
    a = tl.load(gate + pixel, mask=exists, other=0.0).to(ACC)
    d = tl.load(dalpha + pixel, mask=exists, other=0.0).to(ACC) + tl.sum(total, 1, keep_dims=True)
    return d * (1 - a) * a, a


@triton.jit(do_not_specialize=["count", "height", "width", "coarse_h", "coarse_w"])
def _multiplicative_kernel(
    dout, dalpha, x, u, w_x, w_psi, gate, dz, dt, dv, dpsi, count, height, width, coarse_h, coarse_w, channels,
    features, x_image, x_pixel, x_channel, d_image, d_pixel, d_channel,
    NEAREST: tl.constexpr, INDEX: tl.constexpr, P: tl.constexpr, C: tl.constexpr, F: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dz [pixels], dt = d/d(Wx x) and dv = d/d(resized u) [pixels, features], dpsi [programs, features]."""
    pixel, n, s, exists = _pixels(count, height, width, P)
    y, column = s // width, s % width
    d, _ = _logit_gradient(
        dout, dalpha, x, gate, pixel, n, s, exists, channels, x_image, x_pixel, x_channel, d_image, d_pixel, d_channel,
        P, C, ACC,
    )  # fmt: skip
    tl.store(dz + pixel, d, mask=exists)
    for first in range(0, features, F):
        f = first + tl.arange(0, F)[None, :]
        t = _projected(
            x, w_x, n, s, f, exists, channels, features, x_image, x_pixel, x_channel, P, C, F, ACC, PRECISION
        )
        v = _resized(
            u, n, y, column, height, width, coarse_h, coarse_w, f, features, exists, NEAREST, INDEX, ACC
        )
        active = ~(t * v <= 0) & (f < features)
        w = tl.load(w_psi + f, mask=f < features, other=0.0).to(ACC)
        ds = tl.where(active, d * w, 0.0)
        to = pixel.to(tl.int64) * features + f
        tl.store(dt + to, (ds * v).to(dt.dtype.element_ty), mask=exists & (f < features))
        tl.store(dv + to, (ds * t).to(dv.dtype.element_ty), mask=exists & (f < features))
        f = first + tl.arange(0, F)
        psi = tl.sum(tl.where(active & exists, d * t * v, 0.0), 0)
        tl.store(dpsi + tl.program_id(0).to(tl.int64) * features + f, psi, mask=f < features)


@triton.jit(do_not_specialize=["count", "height", "width"])
def _dx_kernel(
    dout, dalpha, x, w_x, w_psi, gate, mask, dt, dz, dx, count, height, width, channels, features, mask_bytes,
    x_image, x_pixel, x_channel, d_image, d_pixel, d_channel, o_image, o_pixel, o_channel,
    BITS: tl.constexpr, P: tl.constexpr, C: tl.constexpr, F: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """BITS: dz, and dx = alpha dout + dz (m (w_psi Wx)); else dx = alpha dout + dt Wx."""
    pixel, n, s, exists = _pixels(count, height, width, P)
    if BITS:
        d, a = _logit_gradient(
            dout, dalpha, x, gate, pixel, n, s, exists, channels, x_image, x_pixel, x_channel, d_image, d_pixel,
            d_channel, P, C, ACC,
        )  # fmt: skip
        tl.store(dz + pixel, d, mask=exists)
    else:
        a = tl.load(gate + pixel, mask=exists, other=0.0).to(ACC)
    for c_first in range(0, channels, C):
        c = c_first + tl.arange(0, C)[None, :]
        total = tl.zeros((P, C), ACC)
        for first in range(0, features, F):
            f = first + tl.arange(0, F)
            w = tl.load(
                w_x + f[:, None] * channels + c, mask=(f[:, None] < features) & (c < channels), other=0.0
            )
            if BITS:
                # 0 and 1 are exact in every type; dz scales afterwards.
                left = _mask_rows(mask, pixel, first, exists, mask_bytes, P, F).to(ACC).to(w.dtype)
                psi = tl.load(w_psi + f, mask=f < features, other=0.0).to(ACC)[:, None]
                w = (psi * w.to(ACC)).to(w.dtype)
            else:
                at = dt + pixel.to(tl.int64) * features + f[None, :]
                left = tl.load(at, mask=exists & (f[None, :] < features), other=0.0)
            total += _dot(left, w, ACC, PRECISION)
        if BITS:
            total = d * total
        total += a * _load_map(dout, n, s, c, exists, channels, d_image, d_pixel, d_channel).to(ACC)
        to = dx + n.to(tl.int64) * o_image + s.to(tl.int64) * o_pixel + c.to(tl.int64) * o_channel
        tl.store(to, total.to(dx.dtype.element_ty), mask=exists & (c < channels))


@triton.jit(do_not_specialize=["count", "height", "width"])
def _dw_kernel(
    x, mask, dz, dt, partials, count, height, width, channels, features, mask_bytes, x_image, x_pixel, x_channel, steps,
    BITS: tl.constexpr, P: tl.constexpr, C: tl.constexpr, F: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """partials[chunk, f, c] = the sum over `steps` tiles of pixels of (dz m, or dt) x^T."""
    c = tl.program_id(1) * C + tl.arange(0, C)
    f_first = tl.program_id(2) * F
    f = f_first + tl.arange(0, F)[None, :]
    total = tl.zeros((C, F), ACC)
    plane = height * width
    for step in range(0, steps):
        first = (tl.program_id(0).to(count.dtype) * steps + step) * P
        pixel = first + tl.arange(0, P)[:, None]
        exists = pixel < count
        across = first + tl.arange(0, P)[None, :]
        value = _load_map(
            x,
            across // plane,
            across % plane,
            c[:, None],
            across < count,
            channels,
            x_image,
            x_pixel,
            x_channel,
        )  # x^T: the tensor cores' 64 rows are channels
        if BITS:
            d = tl.load(dz + pixel, mask=exists, other=0.0)
            right = (_mask_rows(mask, pixel, f_first, exists, mask_bytes, P, F).to(ACC) * d).to(value.dtype)
        else:
            at = dt + pixel.to(tl.int64) * features + f
            right = tl.load(at, mask=exists & (f < features), other=0.0)
        total += _dot(value, right, ACC, PRECISION)
    to = partials + tl.program_id(0).to(tl.int64) * features * channels + f * channels + c[:, None]
    tl.store(to, total, mask=(c[:, None] < channels) & (f < features))


@triton.jit
def _weight_at(i, q, fine, coarse, NEAREST: tl.constexpr, ACC: tl.constexpr):
    """With what weight fine position i reads coarse position q; 0 outside the axis."""
    lower, upper, weight = _taps(i, fine, coarse, NEAREST, ACC)
    found = tl.where(lower == q, 1 - weight, 0.0) + tl.where(upper == q, weight, 0.0)
    return tl.where((i >= 0) & (i < fine), found, 0.0)


@triton.jit
def _first_reader(q, fine, coarse, NEAREST: tl.constexpr):
    """The first fine position that may read coarse position q, perhaps negative."""
    if NEAREST:
        return q * fine // coarse - 1  # the index is rounded in float: one more on either side
    else:
        # The first i whose position is above q - 1: 2 i coarse > 2 fine q - fine - coarse. `shift` keeps the operand of
        # //, which truncates, positive.
        shift = fine // coarse + 1
        return (2 * fine * q - fine - coarse + 2 * coarse * shift) // (2 * coarse) - shift + 1


@triton.jit(do_not_specialize=["count", "height", "width", "coarse_h", "coarse_w"])
def _du_kernel(
    mask, dz, dv, du, count, height, width, coarse_h, coarse_w, features, mask_bytes, span_h, span_w,
    BITS: tl.constexpr, NEAREST: tl.constexpr, INDEX: tl.constexpr, P: tl.constexpr, F: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """du[q, f]: what the fine pixels that read coarse pixel q leave there; dz m, or dv."""
    q, n, s, inside = _pixels(count, coarse_h, coarse_w, P)
    f_first = tl.program_id(1) * F
    f = f_first + tl.arange(0, F)[None, :]
    row, column = (s // coarse_w).to(INDEX), (s % coarse_w).to(INDEX)
    top, left = _first_reader(row, height, coarse_h, NEAREST), _first_reader(column, width, coarse_w, NEAREST)
    total = tl.zeros((P, F), ACC)
    for dy in range(0, span_h):
        wy = _weight_at(top + dy, row, height, coarse_h, NEAREST, ACC)
        for dx in range(0, span_w):
            weight = wy * _weight_at(left + dx, column, width, coarse_w, NEAREST, ACC)
            exists = inside & (weight != 0)
            pixel = (n.to(tl.int64) * height + top + dy) * width + left + dx
            if BITS:
                d = weight * tl.load(dz + pixel, mask=exists, other=0.0)
                total += _mask_rows(mask, pixel, f_first, exists, mask_bytes, P, F).to(ACC) * d
            else:
                at = dv + pixel * features + f
                total += weight * tl.load(at, mask=exists & (f < features), other=0.0).to(ACC)
    to = du + q.to(tl.int64) * features + f
    tl.store(to, total.to(du.dtype.element_ty), mask=inside & (f < features))


# ---- on the host ----------------------------------------------------------------------------------------


def _as_pixels(x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """x [N, C, H, W], or a copy where rows are apart, and its strides of image, pixel and channel."""
    n, c, h, w = x.stride()
    if x.size(2) > 1 and x.size(3) > 1 and h != x.size(3) * w:
        x = x.contiguous(memory_format=memory_format(x))
        n, c, h, w = x.stride()
    return x, (n, w if x.size(3) > 1 else h, c)


def _options(x: Tensor, features: int) -> dict[str, object]:
    double = x.dtype == torch.float64
    pixels, most_channels, most_features = TILES[x.element_size()]
    return {
        "P": pixels,
        "C": power_of_2(x.shape[1], 16, most_channels),
        "F": power_of_2(features, 16, most_features),
        "ACC": tl.float64 if double else tl.float32,
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee",
        # NCHW reads a tile across its rows, which takes twice the registers.
        "num_warps": WARPS if x.element_size() == 2 and is_channels_last(x) else 2 * WARPS,
        **OPTIONS,
    }


def _coarse(g: Tensor, w_g: Tensor, b_g: Tensor) -> Tensor:
    """u = Wg g + b_g, [N, coarse pixels, F], float32 for halves: rounded, it would move s across 0.

    g is read where it lies.
    """
    maps, weights = g.flatten(2).transpose(1, 2), w_g.t().expand(g.shape[0], -1, -1)
    if g.dtype in (torch.bfloat16, torch.float16):
        if g.is_cuda:
            u = torch.bmm(maps, weights, out_dtype=torch.float32)
        else:  # the interpreter
            u = torch.bmm(maps.float(), weights.float())
        return u.add_(b_g)
    return torch.baddbmm(b_g.expand(g.shape[0], 1, -1), maps, weights)


def _index(*sides: int) -> tl.dtype:
    """The integers that hold every product of `_taps` and `_first_reader`."""
    return tl.int32 if 4 * (max(sides) + 2) ** 2 < 2**31 else tl.int64


def attention_gate(
    x: Tensor,
    g: Tensor,
    w_x: Tensor,
    w_g: Tensor,
    b_g: Tensor,
    w_psi: Tensor,
    b_psi: Tensor,
    multiplicative: bool,
    nearest: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (n, channels, height, width), features = x.shape, w_x.shape[0]
    half = x.dtype in (torch.bfloat16, torch.float16)
    out, alpha = empty(x.shape, x.dtype, x), x.new_empty((n, 1, height, width))
    gate = x.new_empty((n, 1, height, width) if half else (0,), dtype=torch.float32 if half else x.dtype)
    mask_bytes = 0 if multiplicative else (features + 7) // 8
    mask = x.new_empty((n, height, width, mask_bytes), dtype=torch.uint8)
    if not out.numel():
        return out, alpha, gate, mask
    read, steps = _as_pixels(x)
    options = _options(x, features)
    count = n * height * width
    _forward_kernel[(triton.cdiv(count, options["P"]),)](
        read,
        _coarse(g, w_g, b_g),
        w_x.contiguous(),
        w_psi.contiguous(),
        b_psi,
        out,
        alpha,
        gate,
        mask,
        count,
        height,
        width,
        *g.shape[2:],
        channels,
        features,
        mask_bytes,
        *steps,
        *_as_pixels(out)[1],
        MULTIPLICATIVE=multiplicative,
        NEAREST=nearest or g.shape[2:] == x.shape[2:],
        HAS_GATE=half,
        KEEP=channels <= options["C"],
        INDEX=_index(height, width),
        **options,
    )
    return out, alpha, gate, mask


def attention_gate_backward(
    dout: Tensor,
    dalpha: Tensor,
    x: Tensor,
    g: Tensor,
    w_x: Tensor,
    w_g: Tensor,
    b_g: Tensor,
    w_psi: Tensor,
    b_psi: Tensor,
    gate: Tensor,
    mask: Tensor,
    multiplicative: bool,
    nearest: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (n, channels, height, width), features = x.shape, w_x.shape[0]
    coarse_h, coarse_w = g.shape[2:]
    dx = empty(x.shape, x.dtype, x)
    parameters = (w_x, w_g, b_g, w_psi, b_psi)
    if not dx.numel():
        return dx, empty(g.shape, g.dtype, g).zero_(), *(torch.zeros_like(p).contiguous() for p in parameters)
    options = _options(x, features)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    nearest = nearest or g.shape[2:] == x.shape[2:]
    index = {"NEAREST": nearest, "INDEX": _index(height, width)}
    (read, x_steps), (d_read, d_steps) = _as_pixels(x), _as_pixels(dout)
    w_x, w_psi, dalpha = w_x.contiguous(), w_psi.contiguous(), dalpha.contiguous()
    count, mask_bytes = n * height * width, mask.shape[-1]
    programs = triton.cdiv(count, options["P"])
    dz = x.new_empty(count, dtype=wide)
    dt = dv = dz
    sides = (height, width)
    if multiplicative:
        u = _coarse(g, w_g, b_g)
        dt, dv = x.new_empty(count, features), x.new_empty(count, features)
        dpsi = x.new_empty(programs, features, dtype=wide)
        _multiplicative_kernel[(programs,)](
            d_read, dalpha, read, u, w_x, w_psi, gate, dz, dt, dv, dpsi, count, *sides, coarse_h, coarse_w, channels,
            features, *x_steps, *d_steps, **index, **options,
        )  # fmt: skip
    _dx_kernel[(programs,)](
        d_read, dalpha, read, w_x, w_psi, gate, mask, dt, dz, dx, count, *sides, channels, features, mask_bytes,
        *x_steps, *d_steps, *_as_pixels(dx)[1], BITS=not multiplicative, **options,
    )  # fmt: skip
    blocks = triton.cdiv(channels, options["C"]), triton.cdiv(features, options["F"])
    steps = triton.cdiv(programs, max(PROGRAMS // (blocks[0] * blocks[1]), 1))
    partials = x.new_empty(triton.cdiv(programs, steps), features, channels, dtype=wide)
    _dw_kernel[(partials.shape[0], *blocks)](
        read, mask, dz, dt, partials, count, *sides, channels, features, mask_bytes, *x_steps, steps,
        BITS=not multiplicative, **options,
    )  # fmt: skip
    coarse_count = n * coarse_h * coarse_w
    du = x.new_empty(n, coarse_h * coarse_w, features)
    # How many fine positions may read a coarse one, from `_first_reader` on.
    pairs = zip(sides, (coarse_h, coarse_w), strict=True)
    spans = [triton.cdiv(f, c) + 2 if nearest else triton.cdiv(2 * f, c) for f, c in pairs]
    du_options = {k: v for k, v in options.items() if k not in ("C", "PRECISION", "P")} | {"P": COARSE_PIXELS}
    _du_kernel[(triton.cdiv(coarse_count, COARSE_PIXELS), blocks[1])](
        mask, dz, dv, du, coarse_count, *sides, coarse_h, coarse_w, features, mask_bytes, *spans,
        BITS=not multiplicative, **index, **du_options,
    )  # fmt: skip
    # What is left is small: products and sums on the coarse grid and of weights, by torch, in a fixed order.
    psi = w_psi.to(wide)[:, None]
    m, sum_du = partials.sum(0), du.sum((0, 1), dtype=wide)
    product = torch.bmm(du.transpose(1, 2), g.flatten(2).transpose(1, 2)).sum(0, dtype=wide)
    if multiplicative:
        back, dw_x, dw_g, db_g, dw_psi = w_g, m, product, sum_du, dpsi.sum(0)
    else:
        back = (psi * w_g.to(wide)).to(w_g.dtype)
        dw_x, dw_g, db_g = psi * m, psi * product, psi[:, 0] * sum_du
        dw_psi = (w_x.to(wide) * m).sum(1) + (w_g.to(wide) * product).sum(1) + b_g.to(wide) * sum_du
    if is_channels_last(g):
        flat = torch.bmm(du, back.expand(n, -1, -1))
        dg = flat.view(n, coarse_h, coarse_w, -1).permute(0, 3, 1, 2)
    else:
        dg = torch.bmm(back.t().expand(n, -1, -1), du.transpose(1, 2)).view(g.shape)
    dg = empty(g.shape, g.dtype, g).copy_(dg) if dg.stride() != empty(g.shape, g.dtype, g).stride() else dg
    found = (dw_x, dw_g, db_g, dw_psi, dz.sum().reshape(1))
    return dx, dg, *(v.to(p.dtype) for v, p in zip(found, parameters, strict=True))
