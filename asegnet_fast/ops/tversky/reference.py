"""Plain PyTorch region sums and the losses made from them: the mathematics every kernel must reproduce."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# The loss kinds. Soft Dice is TVERSKY with alpha = beta = 0.5; focal Tversky is TVERSKY with gamma != 1.
TVERSKY, LITERAL_DICE, GENERALIZED_DICE, CROSS_ENTROPY = range(4)


class Sums(NamedTuple):
    """Rows of a sums tensor [6, N, classes], and of the coefficients d loss / d sums."""

    tp: Tensor  # sum of p over the pixels labelled with the class
    fp: Tensor  # sum of p over the pixels labelled otherwise
    fn: Tensor  # sum of 1 - p over the pixels labelled with the class
    count: Tensor  # pixels labelled with the class
    sum_p2: Tensor  # sum of p^2
    ce: Tensor  # sum of -log p over the pixels labelled with the class


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which logits of `dtype` are summed: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_labels(labels: Tensor, defined: Tensor, classes: int, ignore_index: int | None) -> None:
    # Reading values is impossible while tracing or batching; the native kernels check on their own.
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        return
    if labels.device.type == "cpu" and not bool(defined.all()):
        where = (~defined).nonzero()[0].tolist()
        or_ignored = "" if ignore_index is None else f" or ignore_index {ignore_index}"
        raise RuntimeError(
            f"target: expected labels 0..{classes - 1}{or_ignored}, got {int(labels[tuple(where)])} at {where}"
        )


def _read(logits: Tensor, target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, classes, pixels] in the dtype of the sums, hit [N, classes, pixels], valid [N, 1, pixels].

    Ignored pixels get the logit 0, so that no NaN of theirs reaches a sum or a gradient.
    """
    z = logits.to(sums_dtype(logits.dtype))
    if z.shape[1] == 1:
        z = torch.cat([torch.zeros_like(z), z], dim=1)
    labels = target.long()
    valid = (labels >= 0) & (labels < z.shape[1])
    if ignore_index is None:
        _check_labels(labels, valid, z.shape[1], None)
    else:
        ignored = labels == ignore_index
        _check_labels(labels, valid | ignored, z.shape[1], ignore_index)
        valid = valid & ~ignored
    z, labels, valid = (t.unsqueeze(-1).flatten(start) for t, start in ((z, 2), (labels, 1), (valid, 1)))
    classes = torch.arange(z.shape[1], device=labels.device).unsqueeze(-1)
    labels, valid = labels.unsqueeze(1), valid.unsqueeze(1)
    return torch.where(valid, z, 0.0), (labels == classes) & valid, valid


def region_sums(logits: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
    """The six `Sums` per image and class as one tensor [6, N, classes]; differentiable in `logits`."""
    z, hit, valid = _read(logits, target, ignore_index)
    p = z.softmax(1)
    # 1 - p of the label's class from the other classes' p: p near 1 leaves nothing of 1 - p in float32.
    others = torch.where(hit, 0.0, p).sum(1, keepdim=True)
    tp = torch.where(hit, p, 0.0).sum(2)
    fp = torch.where(valid & ~hit, p, 0.0).sum(2)
    fn = torch.where(hit, others, 0.0).sum(2)
    sum_p2 = torch.where(valid, p * p, 0.0).sum(2)
    ce = torch.where(hit, -z.log_softmax(1), 0.0).sum(2)
    return torch.stack(Sums(tp, fp, fn, hit.sum(2).to(tp.dtype), sum_p2, ce))


def region_sums_backward(
    grad_sums: Tensor, logits: Tensor, target: Tensor, ignore_index: int | None
) -> Tensor:
    """d loss / d logits from d loss / d sums; differentiable in `grad_sums` and `logits`."""
    z, hit, valid = _read(logits, target, ignore_index)
    g = Sums(*grad_sums.unsqueeze(-1).unbind(0))
    p = z.softmax(1)
    dp = torch.where(hit, g.tp - g.fn, g.fp) + 2 * g.sum_p2 * p
    d_ce = torch.where(hit, g.ce, 0.0).sum(1, keepdim=True)
    dz = p * (dp - (p * dp).sum(1, keepdim=True)) + d_ce * (p - hit.to(p.dtype))
    dz = torch.where(valid, dz, 0.0)
    if logits.shape[1] == 1:
        dz = dz[:, 1:]
    return dz.to(logits.dtype).reshape(logits.shape)


def _class_weights(sums: Tensor, weight: Tensor | None, include_background: bool) -> Tensor:
    w = sums.new_ones(sums.shape[2]) if weight is None else weight.to(sums.dtype)
    return w if include_background else torch.cat([torch.zeros_like(w[:1]), w[1:]])


def _tversky_parts(s: Sums, kind: int, alpha: float, beta: float, eps: float) -> tuple[Tensor, Tensor]:
    """(errors, denominator) of u = 1 - TS = errors / denominator; no difference of nearly equal numbers."""
    # The printed Dice, without its factor 2, is the same quotient with tp among the errors.
    errors = s.tp + s.fp + s.fn if kind == LITERAL_DICE else alpha * s.fp + beta * s.fn
    return errors, s.tp + errors + eps


def loss_from_sums(
    sums: Tensor,
    weight: Tensor | None,
    kind: int,
    alpha: float,
    beta: float,
    gamma: float,
    eps: float,
    pool_batch: bool,
    include_background: bool,
) -> Tensor:
    """The scalar loss of sums [6, N, classes]; differentiable in `sums`."""
    w = _class_weights(sums, weight, include_background)
    if kind == CROSS_ENTROPY:
        s = Sums(*sums.sum(1).unbind(0))
        total = (w * s.count).sum()
        return torch.where(total == 0, 0.0, (w * s.ce).sum() / torch.where(total == 0, 1.0, total))
    if pool_batch:
        sums = sums.sum(1, keepdim=True)
    s = Sums(*sums.unbind(0))
    if kind == GENERALIZED_DICE:
        w = w / (s.count * s.count).clamp(min=eps)
        numerator = 2 * (w * s.tp).sum(1) + eps
        per_image = 1 - numerator / ((w * (s.sum_p2 + s.count)).sum(1) + eps)
    else:
        errors, denominator = _tversky_parts(s, kind, alpha, beta, eps)
        u = errors / denominator
        if gamma != 1:
            # The derivative of u^(1/gamma) is infinite at u = 0; the loss defines it as 0 there.
            u = torch.where(u == 0, 0.0, torch.where(u == 0, 1.0, u) ** (1 / gamma))
        per_image = (w * u).sum(1)
    return per_image.sum() / max(per_image.shape[0], 1)


def loss_coefficients(
    sums: Tensor,
    weight: Tensor | None,
    kind: int,
    alpha: float,
    beta: float,
    gamma: float,
    eps: float,
    pool_batch: bool,
    include_background: bool,
) -> Tensor:
    """d loss_from_sums / d sums, [6, N, classes], written out; differentiable in `sums`."""
    n = sums.shape[1]
    w = _class_weights(sums, weight, include_background)
    pooled = kind == CROSS_ENTROPY or pool_batch
    s = Sums(*(sums.sum(1, keepdim=True) if pooled else sums).unbind(0))
    zero = torch.zeros_like(s.tp)
    if kind == CROSS_ENTROPY:
        total = (w * s.count).sum()
        scale = w / torch.where(total == 0, 1.0, total)
        scale = torch.where(total == 0, 0.0, scale)
        d = Sums(zero, zero, zero, zero - scale * (scale * s.ce).sum(), zero, zero + scale)
    elif kind == GENERALIZED_DICE:
        g2 = s.count * s.count
        w = w / g2.clamp(min=eps)
        dw = torch.where(g2 >= eps, -2 * w / torch.where(s.count == 0, 1.0, s.count), 0.0)
        denominator = (w * (s.sum_p2 + s.count)).sum(1, keepdim=True) + eps
        ratio = (2 * (w * s.tp).sum(1, keepdim=True) + eps) / denominator
        d_count = (ratio * (dw * (s.sum_p2 + s.count) + w) - 2 * dw * s.tp) / denominator
        d = Sums(-2 * w / denominator, zero, zero, d_count, ratio * w / denominator, zero)
    else:
        errors, denominator = _tversky_parts(s, kind, alpha, beta, eps)
        u = errors / denominator
        if gamma != 1:
            w = w * torch.where(u == 0, 0.0, torch.where(u == 0, 1.0, u) ** (1 / gamma - 1) / gamma)
        d_errors = w * ((s.tp + eps) / denominator) / denominator
        d_tp = -w * u / denominator
        if kind == LITERAL_DICE:
            alpha = beta = 1.0
            d_tp = d_tp + d_errors
        d = Sums(d_tp, alpha * d_errors, beta * d_errors, zero, zero, zero)
    coefficients = torch.stack(d)
    return coefficients.expand(-1, n, -1).contiguous() if pooled else coefficients / max(n, 1)


def loss_and_coefficients(sums: Tensor, *options: object) -> tuple[Tensor, Tensor]:
    """`loss_from_sums` and `loss_coefficients`, which share their arguments."""
    return loss_from_sums(sums, *options), loss_coefficients(sums, *options)


def region_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int | None, *options: object
) -> tuple[Tensor, Tensor]:
    """(loss, coefficients) of logits [N, C, *spatial] and labels [N, *spatial]; `options` from `kind` on."""
    return loss_and_coefficients(region_sums(logits, target, ignore_index), weight, *options)


def region_loss_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    coefficients: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    *options: object,
) -> Tensor:
    """d loss / d logits from grad = d / d loss. Differentiable in `grad` and `logits`; as a function of `logits`
    it also follows the coefficients, which are therefore made anew, and `coefficients` itself has no gradient."""
    sums = region_sums(logits, target, ignore_index)
    return region_sums_backward(
        grad * loss_coefficients(sums, weight, *options), logits, target, ignore_index
    )
