"""What the Triton kernels of several ops share: windows of 2x2 in either memory format, and small host helpers.

The kernels run in Triton's interpreter in the tests and compile for sm_80 and sm_90; no GPU has run them yet.
Offsets along the outer axes are 64-bit, so maps beyond 2^31 elements are served; a tile's own offsets are 32-bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from asegnet_fast.ops._layout import memory_format

#: Whether kernels run in the interpreter, whose tl.dot takes no bfloat16.
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


#: What every launch passes: Triton's default for contracting a * b + c is about to change.
OPTIONS = {"enable_fp_fusion": True}


# ---- on the host ----------------------------------------------------------------------------------------


def readable(t: Tensor, channels_last: bool) -> Tensor:
    """`t` [N, C, H, W] with its fast axis (C of channels_last, else W) at stride 1: itself, or a copy."""
    axis = 1 if channels_last else 3
    if t.stride(axis) == 1 or t.size(axis) == 1:
        return t
    return t.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def strides(t: Tensor, channels_last: bool) -> tuple[int, int, int]:
    """Strides of image, row, and column (channels_last) or channel: what `map_offset` takes."""
    n, c, h, w = t.stride()
    return (n, h, w) if channels_last else (n, h, c)


def empty(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """A dense map on `like`'s device and in its memory format."""
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=memory_format(like))


def power_of_2(n: int, least: int, most: int) -> int:
    """The next power of 2, within bounds that are powers of 2."""
    return min(max(triton.next_power_of_2(n), least), most)


# ---- on the device --------------------------------------------------------------------------------------


@triton.jit
def compared(value):
    """What stands for a value in comparisons: halves as float32, which holds them exactly."""
    if value.dtype == tl.float64:
        return value
    else:
        return value.to(tl.float32)


@triton.jit
def window_tile(
    block, run, count, h, w, channels, CHANNELS_LAST: tl.constexpr, A: tl.constexpr, B: tl.constexpr
):
    """The windows of a tile among h x w: image, channel, row, column, and which of them exist.

    The tile is number `block` along its first axis and number `run` along the second. channels_last: `count` windows
    [A, 1] (of all images) by channels [1, B]. NCHW: `count` rows of windows [A, 1] (of all planes) by columns [1, B].
    The type of `count`, 32 or 64 bits, is that of the arithmetic.
    """
    first = block.to(count.dtype) * A + tl.arange(0, A)[:, None]
    second = run * B + tl.arange(0, B)[None, :]
    if CHANNELS_LAST:
        rest = first // w
        return rest // h, second, rest % h, first % w, (first < count) & (second < channels)
    else:
        rest = first // h
        return rest // channels, rest % channels, first % h, second, (first < count) & (second < w)


@triton.jit
def map_offset(n, c, row, column, s_image, s_row, s_other, CHANNELS_LAST: tl.constexpr):
    """Where an element lies; the fast axis has stride 1."""
    outer = n.to(tl.int64) * s_image + row.to(tl.int64) * s_row
    if CHANNELS_LAST:
        return outer + column.to(tl.int64) * s_other + c
    else:
        return outer + c.to(tl.int64) * s_other + column


@triton.jit
def load_corners(
    x,
    run,
    n,
    c,
    row,
    column,
    exists,
    height,
    width,
    s_image,
    s_row,
    s_other,
    other,
    CHANNELS_LAST: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    """The elements 2*dy + dx of each window of a height x width map; `other` where the map has none.

    run, and n to exists: of `window_tile`.
    """
    at = x + map_offset(n, c, 2 * row, 2 * column, s_image, s_row, s_other, CHANNELS_LAST)
    here = exists & (2 * row < height) & (2 * column < width)
    below = here & (2 * row + 1 < height)
    if CHANNELS_LAST:
        right = 2 * column + 1 < width
        return (
            tl.load(at, mask=here, other=other),
            tl.load(at + s_other, mask=here & right, other=other),
            tl.load(at + s_row, mask=below, other=other),
            tl.load(at + s_row + s_other, mask=below & right, other=other),
        )
    else:
        # Neighbours in a row are loaded side by side, in whole vectors, and then parted.
        wide = run * (2 * B) + tl.arange(0, 2 * B)[None, :]
        rows = tl.max(exists.to(tl.int32), 1, keep_dims=True) > 0
        at = x + map_offset(n, c, 2 * row, wide, s_image, s_row, s_other, False)
        top = tl.load(at, mask=rows & (2 * row < height) & (wide < width), other=other)
        bottom = tl.load(at + s_row, mask=rows & (2 * row + 1 < height) & (wide < width), other=other)
        v0, v1 = tl.split(tl.reshape(top, (A, B, 2)))
        v2, v3 = tl.split(tl.reshape(bottom, (A, B, 2)))
        return v0, v1, v2, v3


@triton.jit
def store_corners(
    x,
    v0,
    v1,
    v2,
    v3,
    run,
    n,
    c,
    row,
    column,
    exists,
    height,
    width,
    s_image,
    s_row,
    s_other,
    CHANNELS_LAST: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    """Writes what `load_corners` reads."""
    at = x + map_offset(n, c, 2 * row, 2 * column, s_image, s_row, s_other, CHANNELS_LAST)
    here = exists & (2 * row < height) & (2 * column < width)
    below = here & (2 * row + 1 < height)
    if CHANNELS_LAST:
        right = 2 * column + 1 < width
        tl.store(at, v0, mask=here)
        tl.store(at + s_other, v1, mask=here & right)
        tl.store(at + s_row, v2, mask=below)
        tl.store(at + s_row + s_other, v3, mask=below & right)
    else:
        wide = run * (2 * B) + tl.arange(0, 2 * B)[None, :]
        rows = tl.max(exists.to(tl.int32), 1, keep_dims=True) > 0
        at = x + map_offset(n, c, 2 * row, wide, s_image, s_row, s_other, False)
        top, bottom = tl.reshape(tl.join(v0, v1), (A, 2 * B)), tl.reshape(tl.join(v2, v3), (A, 2 * B))
        tl.store(at, top, mask=rows & (2 * row < height) & (wide < width))
        tl.store(at + s_row, bottom, mask=rows & (2 * row + 1 < height) & (wide < width))


@triton.jit
def largest_of_corners(v0, v1, v2, v3):
    """(maximum, position 2*dy + dx): the first of equals, the last NaN, as torch. -inf may stand for what is absent."""
    best = v0
    position = tl.zeros(v0.shape, tl.int32)
    for k in tl.static_range(1, 4):
        candidate = v1 if k == 1 else (v2 if k == 2 else v3)
        key = compared(candidate)
        wins = (key > compared(best)) | (key != key)
        best = tl.where(wins, candidate, best)
        position = tl.where(wins, k, position)
    return best, position.to(tl.uint8)
