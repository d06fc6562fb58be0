"""Batch normalisation, ReLU and 2x2 max-pool in Triton. Each function has the arguments and results of its op.

A map is seen as a matrix [length, series]: pixels by channels in channels_last, pixels of a plane by planes in NCHW;
the fast axis is vectorised and every statistic is one of a series. Training is statistics of fixed chunks, one small
launch that adds these in a fixed order (so the bits are the same every time, and no counter outlives a call), and one
pass that writes the result; backward is two sums of fixed chunks, their addition, and one pass that writes dx. The
ReLU's mask is made anew from x. With the pool, the full-size y is written only where it is wanted. No GPU has run
these kernels yet; they are tested in the interpreter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from asegnet_fast.ops._layout import is_channels_last
from asegnet_fast.ops._triton import (
    OPTIONS,
    empty,
    largest_of_corners,
    load_corners,
    map_offset,
    power_of_2,
    store_corners,
    strides,
    window_tile,
)

#: Elements of a tile: 16 for each of 128 threads, whole vectors of 16 bytes.
TILE = 2048
#: Windows times channels of a tile of the kernels with the pool, which hold four elements of each.
WINDOW_TILE = 1024
#: Longest run along the fast axis.
RUN = 64
#: Programs that sums are cut into: four on each of some 130 multiprocessors.
PROGRAMS = 512
#: Partial sums that the adding programs take at a time.
PARTS = 64
WARPS = 4


# ---- the formula ----------------------------------------------------------------------------------------


@triton.jit
def _parameters(
    c,
    exists,
    mean,
    var,
    weight,
    bias,
    eps,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SUM: tl.constexpr,
):
    """(mean, 1 / standard deviation, weight, bias) of the channels c, as they lie."""
    m = tl.load(mean + c, mask=exists, other=0.0)
    v = (tl.load(var + c, mask=exists, other=1.0) + eps).to(SUM)
    rstd = 1 / tl.sqrt_rn(v) if SUM == tl.float32 else 1 / tl.sqrt(v)
    w = tl.load(weight + c, mask=exists, other=0.0).to(SUM) if HAS_WEIGHT else tl.zeros_like(rstd) + 1
    b = tl.load(bias + c, mask=exists, other=0.0).to(SUM) if HAS_BIAS else tl.zeros_like(rstd)
    return m, rstd, w, b


@triton.jit
def _activated(x, mean, rstd, w, b, RELU: tl.constexpr, SUM: tl.constexpr):
    """y in x's type, for x as loaded; NaN stays."""
    y = ((x.to(SUM) - mean) * rstd * w + b).to(x.dtype)
    if RELU:
        wide = y.to(SUM)
        y = tl.where(wide <= 0, 0.0, wide).to(x.dtype)
    return y


@triton.jit
def _masked(g, x, mean, rstd, w, b, RELU: tl.constexpr, SUM: tl.constexpr):
    """(gradient before the ReLU, normalised x); NaN lets the gradient pass, as in torch."""
    normal = (x.to(SUM) - mean) * rstd
    g = g.to(SUM)
    if RELU:
        g = tl.where(normal * w + b <= 0, 0.0, g)
    return g, normal


# ---- a map as a matrix ----------------------------------------------------------------------------------


@triton.jit
def _place(block, length, series, s_length, s_series, L: tl.constexpr, Q: tl.constexpr):
    """(offset [L, Q], series [1, Q], which exist) of tile number `block` along the length."""
    l = block.to(length.dtype) * L + tl.arange(0, L)[:, None]
    q = tl.program_id(1) * Q + tl.arange(0, Q)[None, :]
    return l.to(tl.int64) * s_length + q.to(tl.int64) * s_series, q, (l < length) & (q < series)


@triton.jit(do_not_specialize=["length"])
def _statistics_kernel(
    x, means, squares, length, series, s_length, s_series, steps,
    L: tl.constexpr, Q: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """means, squares [chunks, series]: mean and sum of squared deviations of each chunk, by Welford's formula.

    Every lane has its own running mean, relative to the chunk's first element: a large mean costs no digits, an
    outlier only those of its lane.
    """
    chunk = tl.program_id(0)
    start = chunk.to(length.dtype) * steps * L
    q = tl.program_id(1) * Q + tl.arange(0, Q)
    at = x + start.to(tl.int64) * s_length + q.to(tl.int64) * s_series
    shift = tl.load(at, mask=q < series, other=0.0).to(SUM)[None, :]
    mean = tl.zeros((L, Q), SUM)
    square = tl.zeros((L, Q), SUM)
    for step in range(0, steps):
        offset, _, exists = _place(chunk * steps + step, length, series, s_length, s_series, L, Q)
        value = tl.load(x + offset, mask=exists, other=0.0).to(SUM) - shift
        delta = value - mean
        mean += tl.where(exists, delta / (step + 1), 0.0)
        square += tl.where(exists, delta * (value - mean), 0.0)
    lane = start + tl.arange(0, L)[:, None]
    end = tl.minimum(start + steps * L, length)
    count = tl.maximum((end - lane + L - 1) // L, 0).to(SUM)
    whole = tl.sum(count * mean, 0, keep_dims=True) / (end - start).to(SUM)
    square = tl.sum(square + count * (mean - whole) * (mean - whole), 0)
    to = chunk.to(tl.int64) * series + q
    total = tl.sum(shift.to(tl.float64) + whole.to(tl.float64), 0)
    tl.store(means + to, total, mask=q < series)
    tl.store(squares + to, square, mask=q < series)


@triton.jit(do_not_specialize=["length", "planes", "chunks"])
def _finish_statistics_kernel(
    means, squares, mean, var, length, planes, chunks, channels, run, K: tl.constexpr, C: tl.constexpr
):
    """mean and biased variance [channels] of chunks of `run` elements: [chunks, planes, channels], in double."""
    c = tl.program_id(0) * C + tl.arange(0, C)[None, :]
    count = (tl.zeros((1, 1), tl.float64) + length) * planes
    total = tl.zeros((1, C), tl.float64)
    for first in range(0, chunks * planes, K):
        k = first + tl.arange(0, K)[:, None]
        exists = (k < chunks * planes) & (c < channels)
        n = tl.minimum(length - (k // planes).to(tl.int64) * run, run).to(tl.float64)
        part = tl.load(means + k.to(tl.int64) * channels + c, mask=exists, other=0.0)
        total += tl.sum(tl.where(exists, n * part, 0.0), 0, keep_dims=True)
    total = total / count
    square = tl.zeros((1, C), tl.float64)
    for first in range(0, chunks * planes, K):
        k = first + tl.arange(0, K)[:, None]
        exists = (k < chunks * planes) & (c < channels)
        n = tl.minimum(length - (k // planes).to(tl.int64) * run, run).to(tl.float64)
        off = tl.load(means + k.to(tl.int64) * channels + c, mask=exists, other=0.0) - total
        within = tl.load(squares + k.to(tl.int64) * channels + c, mask=exists, other=0.0).to(tl.float64)
        square += tl.sum(tl.where(exists, within + n * off * off, 0.0), 0, keep_dims=True)
    tl.store(mean + c, total.to(mean.dtype.element_ty), mask=c < channels)
    tl.store(var + c, (square / count).to(var.dtype.element_ty), mask=c < channels)


@triton.jit(do_not_specialize=["length"])
def _apply_kernel(
    x, y, mean, var, weight, bias, eps: tl.float64, length, series, channels, s_length, s_series,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr, L: tl.constexpr, Q: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    offset, q, exists = _place(tl.program_id(0), length, series, s_length, s_series, L, Q)
    m, rstd, w, b = _parameters(
        q % channels, q < series, mean, var, weight, bias, eps, HAS_WEIGHT, HAS_BIAS, SUM
    )
    value = tl.load(x + offset, mask=exists, other=0.0)
    tl.store(y + offset, _activated(value, m, rstd, w, b, RELU, SUM), mask=exists)


@triton.jit(do_not_specialize=["length"])
def _reduce_kernel(
    dy, x, sums, mean, var, weight, bias, eps: tl.float64, length, series, channels, s_length, s_series, steps, half,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr, L: tl.constexpr, Q: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """sums[0], sums[1], `half` apart: sum of g and of g times normalised x, of each chunk [chunks, series]."""
    chunk = tl.program_id(0)
    q = tl.program_id(1) * Q + tl.arange(0, Q)[None, :]
    m, rstd, w, b = _parameters(
        q % channels, q < series, mean, var, weight, bias, eps, HAS_WEIGHT, HAS_BIAS, SUM
    )
    plain = tl.zeros((L, Q), SUM)
    times = tl.zeros((L, Q), SUM)
    for step in range(0, steps):
        offset, _, exists = _place(chunk * steps + step, length, series, s_length, s_series, L, Q)
        value = tl.load(x + offset, mask=exists, other=0.0)
        g, normal = _masked(tl.load(dy + offset, mask=exists, other=0.0), value, m, rstd, w, b, RELU, SUM)
        plain += tl.where(exists, g, 0.0)
        times += tl.where(exists, g * normal, 0.0)
    to = sums + chunk.to(tl.int64) * series + tl.program_id(1) * Q + tl.arange(0, Q)
    inside = tl.program_id(1) * Q + tl.arange(0, Q) < series
    tl.store(to, tl.sum(plain, 0), mask=inside)
    tl.store(to + half, tl.sum(times, 0), mask=inside)


@triton.jit(do_not_specialize=["parts", "inner"])
def _add_kernel(
    sums, dbias, dweight, parts, channels, inner, s_outer, s_channel, half, K: tl.constexpr, C: tl.constexpr
):
    """The sums of both over the parts, in a fixed order, in double; part k lies at k // inner, k % inner."""
    c = tl.program_id(0) * C + tl.arange(0, C)
    plain = tl.zeros((C,), tl.float64)
    times = tl.zeros((C,), tl.float64)
    for first in range(0, parts, K):
        k = first + tl.arange(0, K)[:, None]
        exists = (k < parts) & (c[None, :] < channels)
        at = sums + (k // inner).to(tl.int64) * s_outer + c[None, :].to(tl.int64) * s_channel + k % inner
        plain += tl.sum(tl.load(at, mask=exists, other=0.0).to(tl.float64), 0)
        times += tl.sum(tl.load(at + half, mask=exists, other=0.0).to(tl.float64), 0)
    tl.store(dbias + c, plain.to(dbias.dtype.element_ty), mask=c < channels)
    tl.store(dweight + c, times.to(dweight.dtype.element_ty), mask=c < channels)


@triton.jit
def _dx(g, normal, rstd, w, mean_g, mean_times, TRAINING: tl.constexpr):
    if TRAINING:
        g = g - mean_g - normal * mean_times
    return rstd * w * g


@triton.jit(do_not_specialize=["length"])
def _backward_kernel(
    dy, x, dx, dbias, dweight, mean, var, weight, bias, eps: tl.float64, share: tl.float64, length, series, channels,
    s_length, s_series, TRAINING: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr,
    L: tl.constexpr, Q: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """dx; in training the statistics are functions of x too; share is 1 / count."""
    offset, q, exists = _place(tl.program_id(0), length, series, s_length, s_series, L, Q)
    c, inside = q % channels, q < series
    m, rstd, w, b = _parameters(c, inside, mean, var, weight, bias, eps, HAS_WEIGHT, HAS_BIAS, SUM)
    mean_g, mean_times = tl.zeros_like(rstd), tl.zeros_like(rstd)
    if TRAINING:
        mean_g += (tl.load(dbias + c, mask=inside, other=0.0) * share).to(SUM)
        mean_times += (tl.load(dweight + c, mask=inside, other=0.0) * share).to(SUM)
    value = tl.load(x + offset, mask=exists, other=0.0)
    g, normal = _masked(tl.load(dy + offset, mask=exists, other=0.0), value, m, rstd, w, b, RELU, SUM)
    tl.store(
        dx + offset,
        _dx(g, normal, rstd, w, mean_g, mean_times, TRAINING).to(dx.dtype.element_ty),
        mask=exists,
    )


# ---- with the pool --------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["count"])
def _pool_kernel(
    x, y, pooled, code, mean, var, weight, bias, eps: tl.float64, count, whole_h, whole_w, h, w, channels, height,
    width, x_image, x_row, x_other, p_image, p_row, p_other,
    FULL: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, A: tl.constexpr, B: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """pooled and code of h x w windows; FULL: y too, whose odd last lines lie in windows of whole_h x whole_w."""
    run = tl.program_id(1)
    n, c, row, column, exists = window_tile(
        tl.program_id(0), run, count, whole_h, whole_w, channels, CHANNELS_LAST, A, B
    )
    m, rstd, scale, b = _parameters(c, c < channels, mean, var, weight, bias, eps, HAS_WEIGHT, HAS_BIAS, SUM)
    v0, v1, v2, v3 = load_corners(
        x, run, n, c, row, column, exists, height, width, x_image, x_row, x_other, 0.0, CHANNELS_LAST, A, B
    )
    v0 = _activated(v0, m, rstd, scale, b, RELU, SUM)
    v1 = _activated(v1, m, rstd, scale, b, RELU, SUM)
    v2 = _activated(v2, m, rstd, scale, b, RELU, SUM)
    v3 = _activated(v3, m, rstd, scale, b, RELU, SUM)
    if FULL:
        store_corners(
            y, v0, v1, v2, v3, run, n, c, row, column, exists, height, width, x_image, x_row, x_other, CHANNELS_LAST,
            A, B,
        )  # fmt: skip
    best, position = largest_of_corners(v0, v1, v2, v3)
    to = map_offset(n, c, row, column, p_image, p_row, p_other, CHANNELS_LAST)
    inside = exists & (row < h) & (column < w)
    tl.store(pooled + to, best, mask=inside)
    tl.store(code + to, position, mask=inside)


@triton.jit
def _corner_gradients(
    dpooled, dy, code, run, n, c, row, column, exists, h, w, height, width, x_image, x_row, x_other, p_image, p_row,
    p_other, HAS_DY: tl.constexpr, CHANNELS_LAST: tl.constexpr, A: tl.constexpr, B: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The gradient of y at the four elements of each window; a code above 3 has none."""
    at = map_offset(n, c, row, column, p_image, p_row, p_other, CHANNELS_LAST)
    inside = exists & (row < h) & (column < w)
    d = tl.load(dpooled + at, mask=inside, other=0.0).to(SUM)
    position = tl.load(code + at, mask=inside, other=255).to(tl.int32)
    g0 = tl.where(position == 0, d, 0.0)
    g1 = tl.where(position == 1, d, 0.0)
    g2 = tl.where(position == 2, d, 0.0)
    g3 = tl.where(position == 3, d, 0.0)
    if HAS_DY:
        d0, d1, d2, d3 = load_corners(
            dy,
            run,
            n,
            c,
            row,
            column,
            exists,
            height,
            width,
            x_image,
            x_row,
            x_other,
            0.0,
            CHANNELS_LAST,
            A,
            B,
        )
        g0, g1, g2, g3 = g0 + d0.to(SUM), g1 + d1.to(SUM), g2 + d2.to(SUM), g3 + d3.to(SUM)
    return g0, g1, g2, g3


@triton.jit(do_not_specialize=["count"])
def _pool_reduce_kernel(
    dpooled, dy, code, x, sums, mean, var, weight, bias, eps: tl.float64, count, whole_h, whole_w, h, w, channels,
    height, width, x_image, x_row, x_other, p_image, p_row, p_other, steps, half,
    HAS_DY: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, A: tl.constexpr, B: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Sums as of `_reduce_kernel`: [chunks, channels] in channels_last, one of each row of windows in NCHW."""
    plain = tl.zeros((A, B), SUM)
    times = tl.zeros((A, B), SUM)
    for step in range(0, steps):
        if CHANNELS_LAST:
            block, run = tl.program_id(0) * steps + step, tl.program_id(1)
        else:
            block, run = tl.program_id(0), tl.program_id(1) + step
        n, c, row, column, exists = window_tile(
            block, run, count, whole_h, whole_w, channels, CHANNELS_LAST, A, B
        )
        m, rstd, scale, b = _parameters(
            c, c < channels, mean, var, weight, bias, eps, HAS_WEIGHT, HAS_BIAS, SUM
        )
        v0, v1, v2, v3 = load_corners(
            x,
            run,
            n,
            c,
            row,
            column,
            exists,
            height,
            width,
            x_image,
            x_row,
            x_other,
            0.0,
            CHANNELS_LAST,
            A,
            B,
        )
        g0, g1, g2, g3 = _corner_gradients(
            dpooled, dy, code, run, n, c, row, column, exists, h, w, height, width, x_image, x_row, x_other, p_image,
            p_row, p_other, HAS_DY, CHANNELS_LAST, A, B, SUM,
        )  # fmt: skip
        # What is absent has no gradient, and 0 for x.
        g0, t0 = _masked(g0, v0, m, rstd, scale, b, RELU, SUM)
        g1, t1 = _masked(g1, v1, m, rstd, scale, b, RELU, SUM)
        g2, t2 = _masked(g2, v2, m, rstd, scale, b, RELU, SUM)
        g3, t3 = _masked(g3, v3, m, rstd, scale, b, RELU, SUM)
        plain += tl.where(exists, (g0 + g1) + (g2 + g3), 0.0)
        times += tl.where(exists, (g0 * t0 + g1 * t1) + (g2 * t2 + g3 * t3), 0.0)
    if CHANNELS_LAST:
        i = tl.program_id(1) * B + tl.arange(0, B)
        to = sums + tl.program_id(0).to(tl.int64) * channels + i
        tl.store(to, tl.sum(plain, 0), mask=i < channels)
        tl.store(to + half, tl.sum(times, 0), mask=i < channels)
    else:
        i = tl.program_id(0).to(count.dtype) * A + tl.arange(0, A)
        tl.store(sums + i, tl.sum(plain, 1), mask=i < count)
        tl.store(sums + half + i, tl.sum(times, 1), mask=i < count)


@triton.jit(do_not_specialize=["count"])
def _pool_backward_kernel(
    dpooled, dy, code, x, dx, dbias, dweight, mean, var, weight, bias, eps: tl.float64, share: tl.float64, count,
    whole_h, whole_w, h, w, channels, height, width, x_image, x_row, x_other, p_image, p_row, p_other,
    TRAINING: tl.constexpr, HAS_DY: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, A: tl.constexpr, B: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(1)
    n, c, row, column, exists = window_tile(
        tl.program_id(0), run, count, whole_h, whole_w, channels, CHANNELS_LAST, A, B
    )
    m, rstd, scale, b = _parameters(c, c < channels, mean, var, weight, bias, eps, HAS_WEIGHT, HAS_BIAS, SUM)
    mean_g, mean_times = tl.zeros_like(rstd), tl.zeros_like(rstd)
    if TRAINING:
        mean_g += (tl.load(dbias + c, mask=c < channels, other=0.0) * share).to(SUM)
        mean_times += (tl.load(dweight + c, mask=c < channels, other=0.0) * share).to(SUM)
    v0, v1, v2, v3 = load_corners(
        x, run, n, c, row, column, exists, height, width, x_image, x_row, x_other, 0.0, CHANNELS_LAST, A, B
    )
    g0, g1, g2, g3 = _corner_gradients(
        dpooled, dy, code, run, n, c, row, column, exists, h, w, height, width, x_image, x_row, x_other, p_image, p_row,
        p_other, HAS_DY, CHANNELS_LAST, A, B, SUM,
    )  # fmt: skip
    g0, t0 = _masked(g0, v0, m, rstd, scale, b, RELU, SUM)
    g1, t1 = _masked(g1, v1, m, rstd, scale, b, RELU, SUM)
    g2, t2 = _masked(g2, v2, m, rstd, scale, b, RELU, SUM)
    g3, t3 = _masked(g3, v3, m, rstd, scale, b, RELU, SUM)
    store_corners(
        dx,
        _dx(g0, t0, rstd, scale, mean_g, mean_times, TRAINING).to(dx.dtype.element_ty),
        _dx(g1, t1, rstd, scale, mean_g, mean_times, TRAINING).to(dx.dtype.element_ty),
        _dx(g2, t2, rstd, scale, mean_g, mean_times, TRAINING).to(dx.dtype.element_ty),
        _dx(g3, t3, rstd, scale, mean_g, mean_times, TRAINING).to(dx.dtype.element_ty),
        run, n, c, row, column, exists, height, width, x_image, x_row, x_other, CHANNELS_LAST, A, B,
    )  # fmt: skip


# ---- on the host ----------------------------------------------------------------------------------------


class _Map:
    """x [N, C, H, W], dense, and the tiles of its kernels."""

    def __init__(self, x: Tensor) -> None:
        self.channels_last = is_channels_last(x)
        self.format = torch.channels_last if self.channels_last else torch.contiguous_format
        self.x = x.contiguous(memory_format=self.format)
        n, c, h, w = x.shape
        self.shape, self.empty = x.shape, x.numel() == 0
        double = x.dtype == torch.float64
        self.sums_dtype = torch.float64 if double else torch.float32
        self.sum = {"SUM": tl.float64 if double else tl.float32, "num_warps": WARPS, **OPTIONS}
        if self.channels_last:
            self.length, self.series, self.matrix = n * h * w, c, (c, 1)
        else:
            self.length, self.series, self.matrix = h * w, n * c, (1, h * w)
        self.share = x.shape[1] / max(x.numel(), 1)  # 1 / elements of a channel
        run = power_of_2(self.series if self.channels_last else self.length, 1, RUN)
        rest = power_of_2(
            self.length if self.channels_last else self.series, 1, TILE // (2 if double else 1) // run
        )
        self.tile = {"L": rest, "Q": run} if self.channels_last else {"L": run, "Q": rest}
        if not self.channels_last:  # few planes: longer runs
            self.tile["L"] = power_of_2(self.length, 1, max(TILE // (2 if double else 1) // rest, 1))
        self.blocks = triton.cdiv(self.length, self.tile["L"]), triton.cdiv(self.series, self.tile["Q"])
        # Chunks of tiles along the length, for sums.
        self.steps = triton.cdiv(self.blocks[0], max(PROGRAMS // max(self.blocks[1], 1), 1))
        self.chunks = triton.cdiv(self.blocks[0], max(self.steps, 1))
        run = power_of_2(c if self.channels_last else (w + 1) // 2, 1, RUN)
        most = max(WINDOW_TILE // (2 if double else 1) // run, 1)
        self.windows = {"CHANNELS_LAST": self.channels_last, "A": most, "B": run}

    def like(self, t: Tensor) -> Tensor:
        """`t` in the memory of x."""
        return t.contiguous(memory_format=self.format)

    def sums(self) -> tuple[Tensor, Tensor]:
        return tuple(self.x.new_empty(self.shape[1], dtype=self.sums_dtype) for _ in range(2))

    def columns(self) -> dict[str, int]:
        """The tile of the kernels that add parts."""
        c = power_of_2(self.shape[1], 1, 32)
        return {"K": PARTS, "C": c, "num_warps": WARPS, **OPTIONS}

    def window_grid(self, h: int, w: int) -> tuple[int, tuple[int, int]]:
        n, c = self.shape[:2]
        count, run = (n * h * w, c) if self.channels_last else (n * c * h, w)
        return count, (triton.cdiv(count, self.windows["A"]), triton.cdiv(run, self.windows["B"]))


def _parameters_of(
    task: _Map, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[tuple, dict[str, bool]]:
    """What `_parameters` takes on the device: arguments and switches."""
    given = [mean if t is None else t.contiguous() for t in (weight, bias)]
    return (mean, var, *given, eps), {"HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None}


def _statistics(
    task: _Map, running_mean: Tensor | None, running_var: Tensor | None, training: bool
) -> tuple[Tensor, Tensor]:
    dtype = task.sums_dtype
    if not training:
        return running_mean.to(dtype, copy=True).contiguous(), running_var.to(dtype, copy=True).contiguous()
    mean, var = task.sums()
    if task.empty:
        return mean.zero_(), var.fill_(1)
    means = task.x.new_empty(task.chunks, task.series, dtype=torch.float64)
    squares = task.x.new_empty(task.chunks, task.series, dtype=dtype)
    _statistics_kernel[(task.chunks, task.blocks[1])](
        task.x, means, squares, task.length, task.series, *task.matrix, task.steps, **task.tile, **task.sum
    )
    channels = task.shape[1]
    columns = task.columns()
    _finish_statistics_kernel[(triton.cdiv(channels, columns["C"]),)](
        means,
        squares,
        mean,
        var,
        task.length,
        task.series // channels,
        task.chunks,
        channels,
        task.steps * task.tile["L"],
        **columns,
    )
    return mean, var


def bn_relu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    task = _Map(x)
    y = empty(x.shape, x.dtype, x)
    mean, var = _statistics(task, running_mean, running_var, training)
    if not task.empty:
        given, switches = _parameters_of(task, mean, var, weight, bias, eps)
        _apply_kernel[task.blocks](
            task.x, y, *given, task.length, task.series, x.shape[1], *task.matrix, RELU=relu, **switches,
            **task.tile, **task.sum,
        )  # fmt: skip
    return y, mean, var


def bn_relu_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    task = _Map(x)
    dx, (dweight, dbias) = empty(x.shape, x.dtype, x), task.sums()
    if task.empty:
        return dx, dweight.zero_(), dbias.zero_()
    dy = task.like(dy)
    given, switches = _parameters_of(task, mean, var, weight, bias, eps)
    sums = x.new_empty(2, task.chunks, task.series, dtype=task.sums_dtype)
    sizes = (task.length, task.series, x.shape[1], *task.matrix)
    options = {"RELU": relu, **switches, **task.tile, **task.sum}
    half = task.chunks * task.series
    _reduce_kernel[(task.chunks, task.blocks[1])](
        dy, task.x, sums, *given, *sizes, task.steps, half, **options
    )
    _add(task, sums, dbias, dweight, half // x.shape[1], 1, x.shape[1], 1)
    _backward_kernel[task.blocks](
        dy, task.x, dx, dbias, dweight, *given, task.share, *sizes, TRAINING=training, **options
    )
    return dx, dweight, dbias


def _add(
    task: _Map,
    sums: Tensor,
    dbias: Tensor,
    dweight: Tensor,
    parts: int,
    inner: int,
    s_outer: int,
    s_channel: int,
) -> None:
    channels, columns = task.shape[1], task.columns()
    _add_kernel[(triton.cdiv(channels, columns["C"]),)](
        sums, dbias, dweight, parts, channels, inner, s_outer, s_channel, sums[0].numel(), **columns
    )


def bn_relu_max_pool2x2(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    relu: bool,
    full: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    task = _Map(x)
    n, c, height, width = x.shape
    y = empty(x.shape, x.dtype, x) if full else x.new_empty(0)
    h, w = height // 2, width // 2
    pooled, code = empty((n, c, h, w), x.dtype, x), empty((n, c, h, w), torch.uint8, x)
    mean, var = _statistics(task, running_mean, running_var, training)
    if not task.empty:
        given, switches = _parameters_of(task, mean, var, weight, bias, eps)
        whole = ((height + 1) // 2, (width + 1) // 2) if full else (h, w)
        count, grid = task.window_grid(*whole)
        _pool_kernel[grid](
            task.x, y, pooled, code, *given, count, *whole, h, w, c, height, width,
            *strides(task.x, task.channels_last), *strides(pooled, task.channels_last), FULL=full, RELU=relu,
            **switches, **task.windows, **task.sum,
        )  # fmt: skip
    return y, pooled, code, mean, var


def bn_relu_max_pool2x2_backward(
    dpooled: Tensor,
    dy: Tensor | None,
    code: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    task = _Map(x)
    dx, (dweight, dbias) = empty(x.shape, x.dtype, x), task.sums()
    if task.empty:
        return dx, dweight.zero_(), dbias.zero_()
    _, c, height, width = x.shape
    h, w = code.shape[2:]
    dpooled, code = task.like(dpooled), task.like(code)
    gradient = dpooled if dy is None else task.like(dy)
    given, switches = _parameters_of(task, mean, var, weight, bias, eps)
    # Training moves the gradient of every element; else only windows matter, but dx of odd lines is still 0.
    whole_h, whole_w = (height + 1) // 2, (width + 1) // 2
    count, grid = task.window_grid(whole_h, whole_w)
    sizes = (
        count, whole_h, whole_w, h, w, c, height, width, *strides(task.x, task.channels_last),
        *strides(code, task.channels_last),
    )  # fmt: skip
    options = {"HAS_DY": dy is not None, "RELU": relu, **switches, **task.windows, **task.sum}
    if task.channels_last:
        steps = triton.cdiv(grid[0], max(PROGRAMS // grid[1], 1))
        chunks = triton.cdiv(grid[0], steps)
        sums = x.new_empty(2, chunks, c, dtype=task.sums_dtype)
        reduce_grid, parts = (chunks, grid[1]), (chunks, 1, c, 1)
    else:
        steps, reduce_grid = grid[1], (grid[0], 1)
        sums = x.new_empty(2, count, dtype=task.sums_dtype)
        parts = (count // c, whole_h, c * whole_h, whole_h)
    _pool_reduce_kernel[reduce_grid](
        dpooled, gradient, code, task.x, sums, *given, *sizes, steps, sums[0].numel(), **options
    )
    _add(task, sums, dbias, dweight, *parts)
    _pool_backward_kernel[grid](
        dpooled,
        gradient,
        code,
        task.x,
        dx,
        dbias,
        dweight,
        *given,
        task.share,
        *sizes,
        TRAINING=training,
        **options,
    )
    return dx, dweight, dbias
