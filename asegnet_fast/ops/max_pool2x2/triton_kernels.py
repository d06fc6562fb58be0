"""2x2 max-pool with positions and its unpool in Triton. Each function has the arguments and results of its op.

A program owns a tile of windows and reads or writes all four elements of each, so every byte moves once, in vectors:
whole runs of channels in channels_last, whole rows in NCHW. Nothing is zero-filled and only the int64 unpool uses an
atomic (a maximum, hence the same bits every time). A code or index outside the map is dropped: its value is written
nowhere, its gradient is zero. No GPU has run these kernels yet; they are tested in the interpreter.
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
    readable,
    store_corners,
    strides,
    window_tile,
)

#: Bytes of one of the four elements that a program handles: two 16-byte accesses for each of its 128 threads.
TILE_BYTES = 4096
#: Longest run of channels (channels_last) or of window columns (NCHW) in a tile: a run of 128 bytes of halves fills
#: a cache line, and rows of the deep levels, 8 to 32 windows long, are not padded.
RUN = 64
WARPS = 4
#: Elements of a program of the kernels over int64 indices, which are bound by scattered access.
FLAT = 512
_FLAT = {"FLAT": FLAT, "num_warps": WARPS, **OPTIONS}


def _tile(channels_last: bool, channels: int, w: int, itemsize: int) -> dict[str, int | bool]:
    run = power_of_2(channels if channels_last else w, 1, RUN)
    return {
        "CHANNELS_LAST": channels_last,
        "A": max(TILE_BYTES // itemsize // run, 1),
        "B": run,
        "num_warps": WARPS,
        **OPTIONS,
    }


def _grid(shape: tuple[int, ...], tile: dict) -> tuple[int, tuple[int, int]]:
    """(count, grid) of `window_tile` over windows [N, C, h, w]."""
    n, c, h, w = shape
    count, run = (n * h * w, c) if tile["CHANNELS_LAST"] else (n * c * h, w)
    return count, (triton.cdiv(count, tile["A"]), triton.cdiv(run, tile["B"]))


@triton.jit(do_not_specialize=["count"])
def _pool_kernel(
    x,
    y,
    code,
    count,
    h,
    w,
    channels,
    height,
    width,
    x_image,
    x_row,
    x_other,
    y_image,
    y_row,
    y_other,
    CHANNELS_LAST: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    run = tl.program_id(1)
    n, c, row, column, exists = window_tile(tl.program_id(0), run, count, h, w, channels, CHANNELS_LAST, A, B)
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
        -float("inf"),
        CHANNELS_LAST,
        A,
        B,
    )
    best, position = largest_of_corners(v0, v1, v2, v3)
    to = map_offset(n, c, row, column, y_image, y_row, y_other, CHANNELS_LAST)
    tl.store(y + to, best, mask=exists)
    tl.store(code + to, position, mask=exists)


@triton.jit(do_not_specialize=["count"])
def _unpool_kernel(
    y,
    code,
    out,
    count,
    whole_h,
    whole_w,
    h,
    w,
    channels,
    height,
    width,
    y_image,
    y_row,
    y_other,
    code_image,
    code_row,
    code_other,
    out_image,
    out_row,
    out_other,
    CHANNELS_LAST: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    # An odd line that belongs to no window is the upper or left half of one that has no value.
    run = tl.program_id(1)
    n, c, row, column, exists = window_tile(
        tl.program_id(0), run, count, whole_h, whole_w, channels, CHANNELS_LAST, A, B
    )
    has_value = exists & (row < h) & (column < w)
    at = map_offset(n, c, row, column, y_image, y_row, y_other, CHANNELS_LAST)
    value = tl.load(y + at, mask=has_value, other=0.0)
    at = map_offset(n, c, row, column, code_image, code_row, code_other, CHANNELS_LAST)
    position = tl.load(code + at, mask=has_value, other=255).to(tl.int32)
    zero = tl.zeros((A, B), value.dtype)
    store_corners(
        out,
        tl.where(position == 0, value, zero),
        tl.where(position == 1, value, zero),
        tl.where(position == 2, value, zero),
        tl.where(position == 3, value, zero),
        run,
        n,
        c,
        row,
        column,
        exists,
        height,
        width,
        out_image,
        out_row,
        out_other,
        CHANNELS_LAST,
        A,
        B,
    )


@triton.jit(do_not_specialize=["count"])
def _unpool_backward_kernel(
    grad,
    code,
    out,
    count,
    h,
    w,
    channels,
    height,
    width,
    grad_image,
    grad_row,
    grad_other,
    code_image,
    code_row,
    code_other,
    out_image,
    out_row,
    out_other,
    CHANNELS_LAST: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    run = tl.program_id(1)
    n, c, row, column, exists = window_tile(tl.program_id(0), run, count, h, w, channels, CHANNELS_LAST, A, B)
    # All four are loaded, in vectors: a gather of one in four would touch the same sectors one element at a time.
    v0, v1, v2, v3 = load_corners(
        grad,
        run,
        n,
        c,
        row,
        column,
        exists,
        height,
        width,
        grad_image,
        grad_row,
        grad_other,
        0.0,
        CHANNELS_LAST,
        A,
        B,
    )
    at = map_offset(n, c, row, column, code_image, code_row, code_other, CHANNELS_LAST)
    position = tl.load(code + at, mask=exists, other=255).to(tl.int32)
    value = tl.zeros((A, B), v0.dtype)
    value = tl.where(position == 0, v0, value)
    value = tl.where(position == 1, v1, value)
    value = tl.where(position == 2, v2, value)
    value = tl.where(position == 3, v3, value)
    to = map_offset(n, c, row, column, out_image, out_row, out_other, CHANNELS_LAST)
    tl.store(out + to, value, mask=exists)


def max_pool2x2(x: Tensor, ceil_mode: bool = False) -> tuple[Tensor, Tensor]:
    channels_last = is_channels_last(x)
    x_read = readable(x, channels_last)
    n, c, height, width = x.shape
    shape = (n, c, (height + ceil_mode) // 2, (width + ceil_mode) // 2)
    y, code = empty(shape, x.dtype, x), empty(shape, torch.uint8, x)
    if y.numel():
        tile = _tile(channels_last, c, shape[3], x.element_size())
        count, grid = _grid(shape, tile)
        _pool_kernel[grid](
            x_read,
            y,
            code,
            count,
            shape[2],
            shape[3],
            c,
            height,
            width,
            *strides(x_read, channels_last),
            *strides(y, channels_last),
            **tile,
        )
    return y, code


def max_unpool2x2(y: Tensor, code: Tensor, height: int, width: int) -> Tensor:
    channels_last = is_channels_last(y)
    y_read, code_read = readable(y, channels_last), readable(code, channels_last)
    n, c, h, w = y.shape
    out = empty((n, c, height, width), y.dtype, y)
    if out.numel():
        whole = (n, c, (height + 1) // 2, (width + 1) // 2)
        tile = _tile(channels_last, c, whole[3], y.element_size())
        count, grid = _grid(whole, tile)
        _unpool_kernel[grid](
            y_read,
            code_read,
            out,
            count,
            *whole[2:],
            h,
            w,
            c,
            height,
            width,
            *strides(y_read, channels_last),
            *strides(code_read, channels_last),
            *strides(out, channels_last),
            **tile,
        )
    return out


def max_unpool2x2_backward(grad: Tensor, code: Tensor) -> Tensor:
    channels_last = is_channels_last(code)
    grad_read, code_read = readable(grad, channels_last), readable(code, channels_last)
    n, c, h, w = code.shape
    out = empty((n, c, h, w), grad.dtype, code)
    if out.numel():
        tile = _tile(channels_last, c, w, grad.element_size())
        count, grid = _grid(out.shape, tile)
        _unpool_backward_kernel[grid](
            grad_read,
            code_read,
            out,
            count,
            h,
            w,
            c,
            *grad.shape[2:],
            *strides(grad_read, channels_last),
            *strides(code_read, channels_last),
            *strides(out, channels_last),
            **tile,
        )
    return out


# ---- torch's int64 indices ------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["count"])
def _flat(count, length, channels, s_image, s_channel, s_pixel, FLAT: tl.constexpr):
    """Elements of planes of `length`: (number, which exist, plane, number in the plane, offset)."""
    i = tl.program_id(0).to(tl.int64) * FLAT + tl.arange(0, FLAT)
    plane = i // length
    k = i % length
    return i, i < count, plane, k, plane // channels * s_image + plane % channels * s_channel + k * s_pixel


@triton.jit(do_not_specialize=["count"])
def _last_of_equals_kernel(indices, last, count, length, channels, i0, i1, i2, size, FLAT: tl.constexpr):
    """last[plane, index] = the greatest number, in its plane, of an element with that index."""
    _, exists, plane, k, at = _flat(count, length, channels, i0, i1, i2, FLAT)
    index = tl.load(indices + at, mask=exists, other=-1)
    tl.atomic_max(
        last + plane * size + index, k.to(last.dtype.element_ty), exists & (index >= 0) & (index < size)
    )


@triton.jit(do_not_specialize=["count"])
def _pick_last_kernel(
    y, last, out, count, size, channels, length, y0, y1, y2, o0, o1, o2, FLAT: tl.constexpr
):
    i, exists, plane, _, to = _flat(count, size, channels, o0, o1, o2, FLAT)
    k = tl.load(last + i, mask=exists, other=-1).to(tl.int64)
    at = plane // channels * y0 + plane % channels * y1 + k * y2
    tl.store(out + to, tl.load(y + at, mask=k >= 0, other=0.0), mask=exists)


@triton.jit(do_not_specialize=["count"])
def _read_indices_kernel(
    grad,
    indices,
    out,
    count,
    length,
    channels,
    size,
    g0,
    g1,
    g2,
    i0,
    i1,
    i2,
    o0,
    o1,
    o2,
    FLAT: tl.constexpr,
):
    _, exists, plane, _, at = _flat(count, length, channels, i0, i1, i2, FLAT)
    _, _, _, _, to = _flat(count, length, channels, o0, o1, o2, FLAT)
    index = tl.load(indices + at, mask=exists, other=-1)
    source = grad + plane // channels * g0 + plane % channels * g1 + index * g2
    value = tl.load(source, mask=(index >= 0) & (index < size), other=0.0)
    tl.store(out + to, value, mask=exists)


def _planes(t: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """`t` [N, C, H, W] and its strides of image, channel and pixel, or those of a copy where rows are apart."""
    if t.size(2) > 1 and t.stride(2) != t.size(3) * t.stride(3):
        t = t.contiguous()
    return t, (t.stride(0), t.stride(1), t.stride(3) if t.size(3) > 1 else t.stride(2))


def max_unpool2d_indices(y: Tensor, indices: Tensor, height: int, width: int) -> Tensor:
    n, c, h, w = y.shape
    out = empty((n, c, height, width), y.dtype, y)
    size, length = height * width, h * w
    if not out.numel():
        return out
    last = torch.full(
        (n * c * size,), -1, device=y.device, dtype=torch.int32 if length < 2**31 else torch.int64
    )
    if length:
        read, steps = _planes(indices)
        count = n * c * length
        grid = (triton.cdiv(count, FLAT),)
        _last_of_equals_kernel[grid](read, last, count, length, c, *steps, size, **_FLAT)
    read, steps = _planes(y)
    grid = (triton.cdiv(out.numel(), FLAT),)
    _pick_last_kernel[grid](
        read,
        last,
        out,
        out.numel(),
        size,
        c,
        length,
        *steps,
        *_planes(out)[1],
        **_FLAT,
    )
    return out


def max_unpool2d_indices_backward(grad: Tensor, indices: Tensor) -> Tensor:
    n, c, h, w = indices.shape
    out = empty((n, c, h, w), grad.dtype, indices)
    if out.numel():
        grad_read, grad_steps = _planes(grad)
        read, steps = _planes(indices)
        _read_indices_kernel[(triton.cdiv(out.numel(), FLAT),)](
            grad_read,
            read,
            out,
            out.numel(),
            h * w,
            c,
            grad.shape[2] * grad.shape[3],
            *grad_steps,
            *steps,
            *_planes(out)[1],
            **_FLAT,
        )
    return out
