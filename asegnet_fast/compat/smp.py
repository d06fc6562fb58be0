"""`segmentation_models_pytorch.losses`' DiceLoss, JaccardLoss and TverskyLoss, from one pass over the logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from asegnet_fast.compat._sums import as_weight, over_batch, refuse, sigmoid_sums, softmax_sums
from asegnet_fast.ops._checks import check_choice, wrong_value

MODES = ("binary", "multiclass", "multilabel")


class TverskyLoss(nn.Module):
    """`segmentation_models_pytorch.losses.TverskyLoss` for logits; alpha weighs false positives, beta false negatives.

    Of each class over the whole batch: score = (tp + smooth) / max(tp + alpha fp + beta fn + smooth, eps), loss
    1 - score, or -log(max(score, eps)) with log_loss; 0 for a class without a pixel. Their mean, to the power gamma.

    The power comes after the mean over the classes and is gamma, not 1 / gamma: it is not the focal Tversky loss of
    Abraham and Khan 2019, which is `asegnet_fast.focal_tversky_loss`. Where the mean is 0 and gamma is below 1 the
    original's gradient is NaN; here it is 0.

    Args:
        mode: "binary" (logits [N, 1, *spatial]; target of as many elements), "multiclass" (logits
            [N, C, *spatial], labels [N, *spatial]) or "multilabel" (target [N, C, *spatial] of 0 and 1).
        classes: the classes that count; all when None.
        from_logits: True.
        ignore_index: label of pixels, or of elements, left out.
        class_weights: one number a class; the mean is weighted by them.

    Raises:
        ValueError: an argument that the fused pass cannot serve, or a target that does not fit.
        RuntimeError: a label that is not defined (on the CPU).

    Equivalent to: ``segmentation_models_pytorch.losses.TverskyLoss(...)``.
    """

    def __init__(
        self,
        mode: str,
        classes: Sequence[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float = 1.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, MODES)
        refuse("from_logits", not from_logits, "True")
        if mode == "binary":
            refuse("classes", classes, "None in binary mode")
            refuse("class_weights", class_weights, "None in binary mode")
        self.mode = mode
        self.log_loss = log_loss
        self.smooth = smooth
        self.ignore_index = ignore_index
        self.eps = eps
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.register_buffer(
            "classes", None if classes is None else torch.as_tensor(classes, dtype=torch.long)
        )
        self.register_buffer("class_weights", as_weight(class_weights))

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        if self.mode == "multiclass":
            sums = softmax_sums(y_pred, y_true, self.ignore_index)
        else:
            if self.mode == "binary":
                if y_pred.numel() != y_true.numel() or y_pred.shape[0] != y_true.shape[0]:
                    raise wrong_value("y_true", f"as many elements as y_pred, {tuple(y_pred.shape)}", y_true)
                y_pred, y_true = (t.reshape(t.shape[0], 1, -1) for t in (y_pred, y_true))
            sums, _ = sigmoid_sums(y_pred, y_true, self.ignore_index)
        s = over_batch(sums)
        errors = self.alpha * s.fp + self.beta * s.fn
        score = ((s.tp + self.smooth) / (s.tp + errors + self.smooth).clamp_min(self.eps))[0]
        loss = -score.clamp_min(self.eps).log() if self.log_loss else 1 - score
        loss = torch.where(s.sum_g[0] > 0, loss, 0.0)
        weights = torch.ones_like(loss) if self.class_weights is None else self.class_weights.to(loss)
        if self.classes is not None:
            loss, weights = loss[self.classes], weights[self.classes]
        mean = (loss * weights).sum() / weights.sum()
        if self.gamma == 1:
            return mean
        return torch.where(mean == 0, 0.0, torch.where(mean == 0, 1.0, mean) ** self.gamma)


class DiceLoss(TverskyLoss):
    """`segmentation_models_pytorch.losses.DiceLoss` for logits: `TverskyLoss` with alpha = beta = 0.5.

    Args: as `TverskyLoss`.

    Equivalent to: ``segmentation_models_pytorch.losses.DiceLoss(...)``.
    """

    _weight_of_errors = 0.5

    def __init__(
        self,
        mode: str,
        classes: Sequence[int] | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        smooth: float = 0.0,
        ignore_index: int | None = None,
        eps: float = 1e-7,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        weight = self._weight_of_errors
        super().__init__(
            mode,
            classes,
            log_loss,
            from_logits,
            smooth,
            ignore_index,
            eps,
            weight,
            weight,
            1.0,
            class_weights,
        )


class JaccardLoss(DiceLoss):
    """`segmentation_models_pytorch.losses.JaccardLoss` for logits: `TverskyLoss` with alpha = beta = 1.

    Args: as `TverskyLoss`.

    Equivalent to: ``segmentation_models_pytorch.losses.JaccardLoss(...)``.
    """

    _weight_of_errors = 1.0
