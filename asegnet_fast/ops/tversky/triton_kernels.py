"""Region losses in Triton. Each function has the arguments and results of its op.

Forward is two launches: one makes the sums of fixed runs of pixels, the other adds these in a fixed order and, for a
loss, finishes it and its derivative in double; so the bits are the same every time, and no counter outlives a call.
Backward is one launch. The softmax is made anew and never stored. An undefined label enters no sum and has no
gradient. No GPU has run these kernels yet; they are tested in the interpreter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from asegnet_fast.ops._triton import OPTIONS, power_of_2

#: Pixels times classes in a tile of the passes over the logits: 8 elements a thread, in each of six accumulators; half
#: as many in double, which spills otherwise.
TILE = 1024
#: Programs that the forward pass is cut into, all images together: four on each of some 130 multiprocessors.
PROGRAMS = 512
#: Chunks times images times classes that the one program which finishes a loss adds at a time.
FINISH_TILE = 1024
WARPS = 4
#: Of the program that finishes a loss: with 4, the double functions spill.
FINISH_WARPS = 8

#: Rows of a sums tensor, as reference.Sums.
ROWS = tl.constexpr(6)
TP, FP, FN, COUNT, SUM_P2, CE = (tl.constexpr(i) for i in range(6))
#: Loss kinds, as in reference.py.
TVERSKY, LITERAL_DICE, GENERALIZED_DICE, CROSS_ENTROPY = (tl.constexpr(i) for i in range(4))


# ---- a tile of pixels -----------------------------------------------------------------------------------


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0 without losing a small x."""
    u = 1 + x
    return tl.where(u == 1, x, tl.log(u) * (x / tl.where(u == 1, 1.0, u - 1)))


@triton.jit
def _read(
    logits, target, n, pixel, pixels, classes, l_image, l_class, l_pixel, t_image, t_pixel, ignore_index,
    ONE_CHANNEL: tl.constexpr, HAS_IGNORE: tl.constexpr, CLASSES: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Logits [P, CLASSES] in the dtype of the sums, hit, valid [P, 1]; pixel is [P, 1].

    Ignored pixels get the logit 0, so that no NaN of theirs reaches a sum. Of one channel, class 0 has the logit 0.
    """
    exists = pixel < pixels
    pixel = pixel.to(tl.int64)
    n = n.to(tl.int64)
    label = tl.load(target + n * t_image + pixel * t_pixel, mask=exists, other=0).to(tl.int64)
    valid = exists & (label >= 0) & (label < classes)
    if HAS_IGNORE:
        valid = valid & (label != ignore_index)
    c = tl.arange(0, CLASSES)[None, :]
    if ONE_CHANNEL:
        z = tl.load(logits + n * l_image + pixel * l_pixel + c * 0, mask=valid & (c == 1), other=0.0).to(SUM)
    else:
        at = logits + n * l_image + pixel * l_pixel + c * l_class
        z = tl.load(at, mask=valid & (c < classes), other=0.0).to(SUM)
        z = tl.where(c < classes, z, -float("inf"))
    return z, (c == label) & valid, valid


@triton.jit
def _softmax(z, hit):
    """(exp(z - max), p, 1 - p of the label's class [P, 1], max [P, 1], sum of exp [P, 1])."""
    largest = tl.max(z, 1, keep_dims=True)
    e = tl.exp(z - largest)
    total = tl.sum(e, 1, keep_dims=True)
    p = e / total
    # 1 - p from the other classes' p: p near 1 leaves nothing of 1 - p in float32.
    others = tl.sum(tl.where(hit, 0.0, p), 1, keep_dims=True)
    return e, p, others, largest, total


@triton.jit(do_not_specialize=["ignore_index"])
def _chunk_sums_kernel(
    logits, target, partials, images, pixels, classes, l_image, l_class, l_pixel, t_image, t_pixel, ignore_index,
    steps, ONE_CHANNEL: tl.constexpr, HAS_IGNORE: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """partials[chunk, row, n, c]: the sums over `steps` tiles of pixels."""
    chunk, n = tl.program_id(0), tl.program_id(1)
    tp = tl.zeros((PIXELS, CLASSES), SUM)
    fp = tl.zeros((PIXELS, CLASSES), SUM)
    fn = tl.zeros((PIXELS, CLASSES), SUM)
    count = tl.zeros((PIXELS, CLASSES), SUM)
    p2 = tl.zeros((PIXELS, CLASSES), SUM)
    ce = tl.zeros((PIXELS, CLASSES), SUM)
    for step in range(0, steps):
        # 64-bit: the last tile of a large volume may start beyond 2^31.
        first = (chunk.to(tl.int64) * steps + step) * PIXELS
        pixel = first + tl.arange(0, PIXELS)[:, None]
        z, hit, valid = _read(
            logits, target, n, pixel, pixels, classes, l_image, l_class, l_pixel, t_image, t_pixel, ignore_index,
            ONE_CHANNEL, HAS_IGNORE, CLASSES, SUM,
        )  # fmt: skip
        e, p, others, largest, total = _softmax(z, hit)
        tp += tl.where(hit, p, 0.0)
        fp += tl.where(valid & ~hit, p, 0.0)
        fn += tl.where(hit, others, 0.0)
        count += tl.where(hit, 1.0, 0.0)
        p2 += tl.where(valid, p * p, 0.0)
        # -log p; of the largest class by log1p, since log(1 + small) would lose the small.
        rest = tl.sum(tl.where(hit, 0.0, e), 1, keep_dims=True)
        ce += tl.where(hit, tl.where(z == largest, _log1p(rest), largest - z + tl.log(total)), 0.0)
    c = tl.arange(0, CLASSES)
    to = partials + (chunk * ROWS * images + n) * classes + c
    row = images * classes
    tl.store(to + TP * row, tl.sum(tp, 0), mask=c < classes)
    tl.store(to + FP * row, tl.sum(fp, 0), mask=c < classes)
    tl.store(to + FN * row, tl.sum(fn, 0), mask=c < classes)
    tl.store(to + COUNT * row, tl.sum(count, 0), mask=c < classes)
    tl.store(to + SUM_P2 * row, tl.sum(p2, 0), mask=c < classes)
    tl.store(to + CE * row, tl.sum(ce, 0), mask=c < classes)


@triton.jit
def _add_chunks_kernel(partials, sums, chunks, length, K: tl.constexpr, LENGTH: tl.constexpr):
    """sums[i] = the sum of partials[k, i] over k."""
    i = tl.program_id(0) * LENGTH + tl.arange(0, LENGTH)[None, :]
    total = tl.zeros((LENGTH,), tl.float64)
    for first in range(0, chunks, K):
        k = first + tl.arange(0, K)[:, None]
        part = tl.load(partials + k * length + i, mask=(k < chunks) & (i < length), other=0.0)
        total += tl.sum(part.to(tl.float64), 0)
    i = tl.program_id(0) * LENGTH + tl.arange(0, LENGTH)
    tl.store(sums + i, total.to(sums.dtype.element_ty), mask=i < length)


@triton.jit(do_not_specialize=["ignore_index"])
def _backward_kernel(
    grad, coefficients, logits, target, out, images, pixels, classes, l_image, l_class, l_pixel, t_image, t_pixel,
    o_image, o_class, o_pixel, ignore_index,
    HAS_GRAD: tl.constexpr, ONE_CHANNEL: tl.constexpr, HAS_IGNORE: tl.constexpr, PIXELS: tl.constexpr,
    CLASSES: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """out = d loss / d logits of a tile, from coefficients[row, n, c] = d loss / d sums (times `grad`)."""
    n = tl.program_id(1)
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)[:, None]
    z, hit, valid = _read(
        logits, target, n, pixel, pixels, classes, l_image, l_class, l_pixel, t_image, t_pixel, ignore_index,
        ONE_CHANNEL, HAS_IGNORE, CLASSES, SUM,
    )  # fmt: skip
    _, p, others, largest, _ = _softmax(z, hit)
    c = tl.arange(0, CLASSES)[None, :]
    at = coefficients + n * classes + c
    row = images * classes
    scale = tl.full((1, 1), 1.0, SUM)
    if HAS_GRAD:
        scale = scale * tl.load(grad).to(SUM)
    d_hit = scale * (
        tl.load(at + TP * row, mask=c < classes, other=0.0)
        - tl.load(at + FN * row, mask=c < classes, other=0.0)
    )
    d_miss = scale * tl.load(at + FP * row, mask=c < classes, other=0.0)
    d_p2 = scale * tl.load(at + SUM_P2 * row, mask=c < classes, other=0.0)
    d_ce = tl.sum(
        tl.where(hit, scale * tl.load(at + CE * row, mask=c < classes, other=0.0), 0.0), 1, keep_dims=True
    )
    dp = tl.where(hit, d_hit, d_miss) + 2 * d_p2 * p
    # dp counts only up to a number: less that of the largest class, nothing cancels where p is near 1.
    first = tl.min(tl.where(z == largest, c, CLASSES), 1, keep_dims=True)
    dp = dp - tl.sum(tl.where(c == first, dp, 0.0), 1, keep_dims=True)
    dz = p * (dp - tl.sum(p * dp, 1, keep_dims=True)) + d_ce * tl.where(hit, -others, p)
    dz = tl.where(valid, dz, 0.0)
    to = out + n.to(tl.int64) * o_image + pixel * o_pixel
    if ONE_CHANNEL:
        tl.store(to + c * 0, dz.to(out.dtype.element_ty), mask=(pixel < pixels) & (c == 1))
    else:
        tl.store(to + c * o_class, dz.to(out.dtype.element_ty), mask=(pixel < pixels) & (c < classes))


# ---- the loss of the sums -------------------------------------------------------------------------------


@triton.jit
def _power(u, exponent):
    """u^exponent, and 0 where u = 0."""
    return tl.where(u == 0, 0.0, tl.exp(tl.log(tl.where(u == 0, 1.0, u)) * exponent))


@triton.jit
def _loss_of_sums(
    tp, fp, fn, count, p2, ce, w, alpha, beta, inverse_gamma, eps, KIND: tl.constexpr, FOCAL: tl.constexpr
):
    """(loss [images, 1], its derivatives by the six sums) of sums [images, classes]; as csrc/tversky/math.h."""
    zero = tl.zeros_like(tp)
    if KIND == CROSS_ENTROPY:
        total = tl.sum(w * count, 1, keep_dims=True)
        empty = total == 0  # every pixel ignored: no loss, no gradient
        scale = tl.where(empty, 0.0, w / tl.where(empty, 1.0, total))
        loss = tl.sum(scale * ce, 1, keep_dims=True)
        return loss, zero, zero, zero, zero - scale * loss, zero, zero + scale
    elif KIND == GENERALIZED_DICE:
        g2 = count * count
        wc = w / tl.maximum(g2, eps)
        dw = tl.where((g2 < eps) | (count == 0), 0.0, -2 * wc / tl.where(count == 0, 1.0, count))
        denominator = tl.sum(wc * (p2 + count), 1, keep_dims=True) + eps
        ratio = (2 * tl.sum(wc * tp, 1, keep_dims=True) + eps) / denominator
        d_count = (ratio * (dw * (p2 + count) + wc) - 2 * dw * tp) / denominator
        return 1 - ratio, -2 * wc / denominator, zero, zero, d_count, ratio * wc / denominator, zero
    else:
        # u = 1 - TS as a quotient of sums, so that a good prediction loses no digits to 1 - TS. The printed Dice,
        # without its factor 2, is the same quotient with tp among the errors.
        if KIND == LITERAL_DICE:
            errors = tp + fp + fn
        else:
            errors = alpha * fp + beta * fn
        denominator = tp + errors + eps
        u = errors / denominator
        value = u
        slope = w
        if FOCAL:
            # The slope of u^(1/gamma) is infinite at u = 0; it is defined as 0 there.
            value = _power(u, inverse_gamma)
            slope = w * _power(u, inverse_gamma - 1) * inverse_gamma
        d_errors = slope * ((tp + eps) / denominator) / denominator
        d_tp = -slope * u / denominator
        loss = tl.sum(w * value, 1, keep_dims=True)
        if KIND == LITERAL_DICE:
            return loss, d_tp + d_errors, d_errors, d_errors, zero, zero, zero
        else:
            return loss, d_tp, alpha * d_errors, beta * d_errors, zero, zero, zero


@triton.jit
def _add_row(
    partials,
    ROW: tl.constexpr,
    n,
    c,
    chunks,
    images,
    classes,
    K: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
):
    """The sum over the chunks of one row of sums, [N, C] in double; n is [N, 1], c [1, C]."""
    total = tl.zeros((N, C), tl.float64)
    exists = ((n < images) & (c < classes))[None, :, :]
    place = (n * classes + c)[None, :, :]
    for first in range(0, chunks, K):
        k = first + tl.arange(0, K)[:, None, None]
        at = partials + (k * ROWS + ROW) * images * classes + place
        total += tl.sum(tl.load(at, mask=exists & (k < chunks), other=0.0).to(tl.float64), 0)
    return total


@triton.jit
def _store_row(to, value, exists, N: tl.constexpr, C: tl.constexpr):
    tl.store(to, tl.broadcast_to(value, (N, C)).to(to.dtype.element_ty), mask=exists)


@triton.jit
def _finish_kernel(
    partials, weight, loss, coefficients, chunks, images, classes, alpha: tl.float64, beta: tl.float64,
    inverse_gamma: tl.float64, eps: tl.float64, share: tl.float64,
    KIND: tl.constexpr, FOCAL: tl.constexpr, POOLED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, BACKGROUND: tl.constexpr, K: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """loss and coefficients[row, n, c] from partials[chunk, row, n, c], by one program, in double."""
    c = tl.arange(0, C)[None, :]
    w = tl.where(c < classes, 1.0, 0.0).to(tl.float64)
    if HAS_WEIGHT:
        w = tl.load(weight + c, mask=c < classes, other=0.0).to(tl.float64)
    if not BACKGROUND:
        w = tl.where(c == 0, 0.0, w)
    row = images * classes
    result = tl.zeros((1, 1), tl.float64)
    if POOLED:
        tp = tl.zeros((1, C), tl.float64)
        fp = tl.zeros((1, C), tl.float64)
        fn = tl.zeros((1, C), tl.float64)
        count = tl.zeros((1, C), tl.float64)
        p2 = tl.zeros((1, C), tl.float64)
        ce = tl.zeros((1, C), tl.float64)
        for first in range(0, images, N):
            n = first + tl.arange(0, N)[:, None]
            tp += tl.sum(_add_row(partials, TP, n, c, chunks, images, classes, K, N, C), 0, keep_dims=True)
            fp += tl.sum(_add_row(partials, FP, n, c, chunks, images, classes, K, N, C), 0, keep_dims=True)
            fn += tl.sum(_add_row(partials, FN, n, c, chunks, images, classes, K, N, C), 0, keep_dims=True)
            count += tl.sum(
                _add_row(partials, COUNT, n, c, chunks, images, classes, K, N, C), 0, keep_dims=True
            )
            p2 += tl.sum(
                _add_row(partials, SUM_P2, n, c, chunks, images, classes, K, N, C), 0, keep_dims=True
            )
            ce += tl.sum(_add_row(partials, CE, n, c, chunks, images, classes, K, N, C), 0, keep_dims=True)
        result, d0, d1, d2, d3, d4, d5 = _loss_of_sums(
            tp, fp, fn, count, p2, ce, w, alpha, beta, inverse_gamma, eps, KIND, FOCAL
        )
        for first in range(0, images, N):
            n = first + tl.arange(0, N)[:, None]
            exists = (n < images) & (c < classes)
            to = coefficients + n * classes + c
            _store_row(to + TP * row, d0, exists, N, C)
            _store_row(to + FP * row, d1, exists, N, C)
            _store_row(to + FN * row, d2, exists, N, C)
            _store_row(to + COUNT * row, d3, exists, N, C)
            _store_row(to + SUM_P2 * row, d4, exists, N, C)
            _store_row(to + CE * row, d5, exists, N, C)
    else:
        for first in range(0, images, N):
            n = first + tl.arange(0, N)[:, None]
            exists = (n < images) & (c < classes)
            tp = _add_row(partials, TP, n, c, chunks, images, classes, K, N, C)
            fp = _add_row(partials, FP, n, c, chunks, images, classes, K, N, C)
            fn = _add_row(partials, FN, n, c, chunks, images, classes, K, N, C)
            count = _add_row(partials, COUNT, n, c, chunks, images, classes, K, N, C)
            p2 = _add_row(partials, SUM_P2, n, c, chunks, images, classes, K, N, C)
            ce = _add_row(partials, CE, n, c, chunks, images, classes, K, N, C)
            each, d0, d1, d2, d3, d4, d5 = _loss_of_sums(
                tp, fp, fn, count, p2, ce, w, alpha, beta, inverse_gamma, eps, KIND, FOCAL
            )
            result += tl.sum(tl.where(n < images, each, 0.0), 0, keep_dims=True)
            to = coefficients + n * classes + c
            _store_row(to + TP * row, d0 * share, exists, N, C)
            _store_row(to + FP * row, d1 * share, exists, N, C)
            _store_row(to + FN * row, d2 * share, exists, N, C)
            _store_row(to + COUNT * row, d3 * share, exists, N, C)
            _store_row(to + SUM_P2 * row, d4 * share, exists, N, C)
            _store_row(to + CE * row, d5 * share, exists, N, C)
        result = result * share
    tl.store(loss + tl.zeros((1, 1), tl.int32), result.to(loss.dtype.element_ty))


# ---- on the host ----------------------------------------------------------------------------------------


def _pixel_stride(t: Tensor, first: int) -> int | None:
    """The one stride of all axes from `first` on together; None where they are no single run."""
    step = span = None
    for size, stride in zip(reversed(t.shape[first:]), reversed(t.stride()[first:]), strict=True):
        if size == 1:
            continue
        if step is None:
            step, span = stride, stride * size
        elif stride != span:
            return None
        else:
            span = stride * size
    return 1 if step is None else step


def _as_pixels(t: Tensor, first: int) -> tuple[Tensor, tuple[int, ...]]:
    """`t`, or a copy whose axes from `first` on are one run, and its strides with these as one."""
    step = _pixel_stride(t, first)
    if step is None:
        t = t.contiguous()
        step = 1
    return t, (*t.stride()[:first], step)


class _Pass:
    """A pass over logits and labels: what both directions tell their kernels."""

    def __init__(self, logits: Tensor, target: Tensor, ignore_index: int | None) -> None:
        channels = logits.shape[1]
        self.images, self.classes = logits.shape[0], max(channels, 2)
        self.pixels = logits[0:0, 0].numel() if not self.images else logits[0, 0].numel()
        # A bool is a byte to a kernel.
        target = target.view(torch.uint8) if target.dtype == torch.bool else target
        logits, l_steps = _as_pixels(logits, 2)
        target, t_steps = _as_pixels(target, 1)
        self.sums_dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        classes = triton.next_power_of_2(self.classes)
        self.arguments = (logits, target)
        self.sizes = (self.images, self.pixels, self.classes, *l_steps, *t_steps)
        self.ignore_index = 0 if ignore_index is None else ignore_index
        self.options = {
            "ONE_CHANNEL": channels == 1,
            "HAS_IGNORE": ignore_index is not None,
            "PIXELS": max(TILE // (2 if self.sums_dtype == torch.float64 else 1) // classes, 1),
            "CLASSES": classes,
            "SUM": tl.float64 if self.sums_dtype == torch.float64 else tl.float32,
            "num_warps": WARPS,
            **OPTIONS,
        }

    def partials(self) -> tuple[Tensor, int]:
        """Sums [chunks, 6, N, classes] of every chunk of pixels, and the number of chunks."""
        tiles = triton.cdiv(self.pixels, self.options["PIXELS"])
        steps = max(triton.cdiv(tiles, max(PROGRAMS // max(self.images, 1), 1)), 1)
        chunks = max(triton.cdiv(tiles, steps), 1)
        shape = (chunks, ROWS.value, self.images, self.classes)
        partials = torch.empty(shape, dtype=self.sums_dtype, device=self.arguments[0].device)
        if self.images:
            grid = (chunks, self.images)
            _chunk_sums_kernel[grid](
                *self.arguments, partials, *self.sizes, self.ignore_index, steps, **self.options
            )
        return partials, chunks


def region_sums(logits: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
    task = _Pass(logits, target, ignore_index)
    partials, chunks = task.partials()
    sums = torch.empty(partials.shape[1:], dtype=partials.dtype, device=partials.device)
    if sums.numel():
        length = power_of_2(sums.numel(), 16, 128)
        k = power_of_2(chunks, 1, FINISH_TILE // length)
        grid = (triton.cdiv(sums.numel(), length),)
        _add_chunks_kernel[grid](
            partials, sums, chunks, sums.numel(), K=k, LENGTH=length, num_warps=WARPS, **OPTIONS
        )
    return sums


def _finish(
    partials: Tensor,
    weight: Tensor | None,
    kind: int,
    alpha: float,
    beta: float,
    gamma: float,
    eps: float,
    pool_batch: bool,
    include_background: bool,
) -> tuple[Tensor, Tensor]:
    chunks, _, images, classes = partials.shape
    loss = torch.empty((), dtype=partials.dtype, device=partials.device)
    coefficients = torch.empty(partials.shape[1:], dtype=partials.dtype, device=partials.device)
    c = triton.next_power_of_2(classes)
    n = power_of_2(images, 1, max(FINISH_TILE // c, 1))
    _finish_kernel[(1,)](
        partials,
        partials if weight is None else weight.contiguous(),
        loss,
        coefficients,
        chunks,
        images,
        classes,
        alpha,
        beta,
        1 / gamma,
        eps,
        1 / max(images, 1),
        KIND=kind,
        FOCAL=gamma != 1,
        # Of no images the mean would divide by 0; pooled, their sums are 0 and so is the loss.
        POOLED=pool_batch or kind == CROSS_ENTROPY.value or images == 0,
        HAS_WEIGHT=weight is not None,
        BACKGROUND=include_background,
        K=power_of_2(chunks, 1, max(FINISH_TILE // (n * c), 1)),
        N=n,
        C=c,
        num_warps=FINISH_WARPS,
        **OPTIONS,
    )
    return loss, coefficients


def loss_from_sums(sums: Tensor, weight: Tensor | None, *options: object) -> tuple[Tensor, Tensor]:
    return _finish(sums.contiguous().unsqueeze(0), weight, *options)


def region_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int | None, *options: object
) -> tuple[Tensor, Tensor]:
    return _finish(_Pass(logits, target, ignore_index).partials()[0], weight, *options)


def _backward(grad: Tensor | None, coefficients: Tensor, task: _Pass, logits: Tensor) -> Tensor:
    out = torch.empty_like(logits)
    if not out.numel():
        return out
    dense = (
        out
        if _pixel_stride(out, 2) is not None
        else torch.empty(out.shape, dtype=out.dtype, device=out.device)
    )
    coefficients = coefficients.contiguous()
    grid = (triton.cdiv(task.pixels, task.options["PIXELS"]), task.images)
    _backward_kernel[grid](
        coefficients if grad is None else grad,
        coefficients,
        *task.arguments,
        dense,
        *task.sizes,
        *_as_pixels(dense, 2)[1],
        task.ignore_index,
        HAS_GRAD=grad is not None,
        **task.options,
    )
    return out if dense is out else out.copy_(dense)


def region_sums_backward(
    grad_sums: Tensor, logits: Tensor, target: Tensor, ignore_index: int | None
) -> Tensor:
    return _backward(None, grad_sums, _Pass(logits, target, ignore_index), logits)


def region_loss_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    coefficients: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *options: object,
) -> Tensor:
    return _backward(grad, coefficients, _Pass(logits, target, ignore_index), logits)
