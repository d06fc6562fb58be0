"""`monai.losses`' DiceLoss, TverskyLoss, GeneralizedDiceLoss and DiceCELoss, from one pass over the logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from asegnet_fast.compat._sums import (
    as_weight,
    channel_maps,
    check_reduction,
    over_batch,
    reduced,
    refuse,
    sigmoid_sums,
    softmax_sums,
    without_first,
)
from asegnet_fast.ops._checks import check_choice, wrong_value
from asegnet_fast.ops.tversky.op import RegionSums


class _Loss(nn.Module):
    """What the losses share: how MONAI's arguments choose the sums, and how it reduces.

    Args:
        include_background: whether channel 0 counts; without meaning for one channel.
        to_onehot_y: the target holds labels [N, 1, *spatial]; else a map a channel [N, C, *spatial].
        sigmoid, softmax: exactly one is true; softmax needs at least two channels.
        other_act: None.
        reduction: "mean", "sum" or "none".
        batch: sums over the batch come first.
        soft_label: False.
        ignore_index: label of pixels left out; with labels, or with one channel.

    Raises:
        ValueError: an argument that the fused pass cannot serve, a target that does not fit, a pixel of several
            classes under softmax.
        RuntimeError: a label that is not defined (on the CPU).
    """

    def __init__(
        self,
        include_background: bool,
        to_onehot_y: bool,
        sigmoid: bool,
        softmax: bool,
        other_act: Callable | None,
        reduction: str,
        batch: bool,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        refuse("other_act", other_act, "None")
        refuse("soft_label", soft_label, "False")
        if bool(sigmoid) == bool(softmax):
            raise wrong_value("sigmoid, softmax", "exactly one of them true", (sigmoid, softmax))
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.reduction = check_reduction(reduction)
        self.batch = batch
        self.ignore_index = ignore_index

    def class_sums(self, input: Tensor, target: Tensor) -> tuple[RegionSums, Tensor | None]:
        """[N, C] sums of every channel; under sigmoid also the cross-entropy of target 0."""
        one_channel = input.shape[1] == 1
        labels = self.to_onehot_y and not one_channel
        wanted = (input.shape[0], 1 if labels else input.shape[1], *input.shape[2:])
        if target.shape != wanted:
            raise wrong_value("target", f"shape {tuple(wanted)}", target)
        if self.softmax:
            if one_channel:
                raise wrong_value("softmax", "at least two channels of logits", input)
            return softmax_sums(input, target, self.ignore_index), None
        if labels:
            refuse("ignore_index", self.ignore_index, "None where sigmoid meets labels of several classes")
            return sigmoid_sums(input, channel_maps(target, input.shape[1]))
        if not one_channel:
            refuse("ignore_index", self.ignore_index, "None beside a map a channel")
        return sigmoid_sums(input, target, self.ignore_index)

    def chosen(self, sums: RegionSums) -> RegionSums:
        """[1, C] over the batch where asked, without the background where it does not count."""
        if not self.include_background and sums.tp.shape[1] > 1:
            sums = without_first(sums)
        return over_batch(sums) if self.batch else sums

    def sums(self, input: Tensor, target: Tensor) -> RegionSums:
        """The sums that the loss is made of."""
        return self.chosen(self.class_sums(input, target)[0])

    def finished(self, loss: Tensor, spatial: int | None) -> Tensor:
        """Reduce [N, classes]; "none" appends `spatial` axes of size 1, where that is not None."""
        loss = loss[0] if self.batch else loss
        if self.reduction == "none" and spatial is not None:
            return loss.reshape(*loss.shape, *(1 for _ in range(spatial)))
        return reduced(loss, self.reduction)


class DiceLoss(_Loss):
    """`monai.losses.DiceLoss` for logits and hard labels.

    f = 1 - (2 tp + smooth_nr) / (2 tp + fp + fn + smooth_dr), of each image and class. squared_pred puts
    sum p^2 + sum g into the denominator; jaccard puts 2 (tp + fp + fn) there.

    Args:
        weight: one number, or one a class that counts; multiplies f where there is more than one class.
        others: as `_Loss` and the original.

    Equivalent to: ``monai.losses.DiceLoss(...)``.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Sequence[float] | float | Tensor | None = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction,
            batch,
            soft_label,
            ignore_index,
        )
        self.squared_pred = squared_pred
        self.jaccard = jaccard
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.register_buffer("class_weight", as_weight(weight))
        if self.class_weight is not None and self.class_weight.min() < 0:
            raise wrong_value("weight", "numbers of at least 0", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self.of_sums(self.sums(input, target), input.dim() - 2)

    def of_sums(self, s: RegionSums, spatial: int) -> Tensor:
        """The loss of sums [N, classes] that are already chosen and pooled."""
        if self.squared_pred:
            errors = s.sum_p2 + s.sum_g - 2 * s.tp
        else:
            errors = s.fp + s.fn
        errors = 2 * errors if self.jaccard else errors
        loss = 1 - (2 * s.tp + self.smooth_nr) / (2 * s.tp + errors + self.smooth_dr)
        if self.class_weight is not None and loss.shape[1] != 1:
            if self.class_weight.dim() == 1 and len(self.class_weight) != loss.shape[1]:
                raise wrong_value(
                    "weight", f"one number for each of {loss.shape[1]} classes", self.class_weight
                )
            loss = loss * self.class_weight.to(loss)
        return self.finished(loss, spatial)


class TverskyLoss(_Loss):
    """`monai.losses.TverskyLoss` for logits and hard labels; alpha weighs false positives, beta false negatives.

    f = 1 - (tp + smooth_nr) / (tp + alpha fp + beta fn + smooth_dr), of each image and class.

    Args: as `_Loss` and the original.

    Equivalent to: ``monai.losses.TverskyLoss(...)``.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable | None = None,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction,
            batch,
            soft_label,
            ignore_index,
        )
        self.alpha = alpha
        self.beta = beta
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        s = self.sums(input, target)
        errors = self.alpha * s.fp + self.beta * s.fn
        loss = 1 - (s.tp + self.smooth_nr) / (s.tp + errors + self.smooth_dr)
        return self.finished(loss, None)


class GeneralizedDiceLoss(_Loss):
    """`monai.losses.GeneralizedDiceLoss` for logits and hard labels.

    f = 1 - (2 sum_c w_c tp + smooth_nr) / (sum_c w_c (2 tp + fp + fn) + smooth_dr), of each image. w_c is
    1 / size_c^2, 1 / size_c or 1; a class without pixels has the largest weight of the others, 0 where all lack.

    Args:
        w_type: "square", "simple" or "uniform".
        others: as `_Loss` and the original.

    Equivalent to: ``monai.losses.GeneralizedDiceLoss(...)``.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable | None = None,
        w_type: str = "square",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, batch, soft_label
        )
        self.w_type = getattr(w_type, "value", w_type)
        check_choice("w_type", self.w_type, ("square", "simple", "uniform"))
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        s = self.sums(input, target)
        size = s.sum_g.detach()
        powers = {"square": 2, "simple": 1, "uniform": 0}
        weight = torch.where(size == 0, 0.0, size.clamp(min=1) ** -powers[self.w_type])
        if self.w_type == "uniform":
            weight = torch.ones_like(size)
        weight = torch.where(size == 0, weight.amax(1, keepdim=True), weight)
        overlap = 2 * (weight * s.tp).sum(1, keepdim=True) + self.smooth_nr
        total = (weight * (2 * s.tp + s.fp + s.fn)).sum(1, keepdim=True) + self.smooth_dr
        return self.finished(1 - overlap / total, input.dim() - 2)


class DiceCELoss(nn.Module):
    """`monai.losses.DiceCELoss` for logits and hard labels; under softmax both losses come from one pass.

    lambda_dice times `DiceLoss` plus lambda_ce times the cross-entropy: of softmax probabilities for several
    channels (whatever `sigmoid` says of the Dice part, as the original), binary for one.

    Args:
        weight: one number a class, for both parts; for one channel the weight of positive pixels.
        label_smoothing: 0.
        others: as `DiceLoss`.

    Equivalent to: ``monai.losses.DiceCELoss(...)``.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Tensor | Sequence[float] | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if label_smoothing != 0:
            raise wrong_value("label_smoothing", "0, as the fused pass needs it", label_smoothing)
        for name, value in (("lambda_dice", lambda_dice), ("lambda_ce", lambda_ce)):
            if not value >= 0:
                raise wrong_value(name, "a number of at least 0", value)
        weight = as_weight(weight)
        self.dice = DiceLoss(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            squared_pred,
            jaccard,
            reduction,
            smooth_nr,
            smooth_dr,
            batch,
            weight if weight is None or include_background else weight[1:],
        )
        if self.dice.reduction == "none":
            raise wrong_value("reduction", "'mean' or 'sum'", reduction)
        self.register_buffer("weight", weight)
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        sums, ce_of_zero = self.dice.class_sums(input, target)
        dice = self.dice.of_sums(self.dice.chosen(sums), input.dim() - 2)
        if input.shape[1] == 1:
            total = (
                sums.ce if self.weight is None else sums.ce * self.weight.to(sums.ce)
            ).sum() + ce_of_zero.sum()
            count = input.numel()
        else:
            softmax = sums if self.dice.softmax else softmax_sums(input, target)
            weight = softmax.tp.new_ones(()) if self.weight is None else self.weight.to(softmax.tp)
            total = (softmax.ce * weight).sum()
            # Beside a one-hot target the original divides by the pixels, beside labels by their weights.
            count = (softmax.sum_g * weight if target.shape[1] == 1 else softmax.sum_g).sum()
        ce = total if self.dice.reduction == "sum" else total / count
        return self.lambda_dice * dice + self.lambda_ce * ce
