"""nnU-Net's soft Dice and its compounds with cross-entropy, from one pass over the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from asegnet_fast.compat._sums import as_weight, over_batch, sigmoid_sums, softmax_sums, without_first
from asegnet_fast.ops._checks import check_choice, wrong_value
from asegnet_fast.ops.tversky.op import RegionSums

NONLINEARITIES = ("softmax", "sigmoid")


class SoftDiceLoss(nn.Module):
    """nnU-Net's `SoftDiceLoss` and `MemoryEfficientSoftDiceLoss`, minus the mean Dice over images and classes.

    dc = (2 tp + smooth) / max(2 tp + fp + fn + smooth, 1e-8); the loss is -mean(dc).

    Args:
        apply_nonlin: "softmax" or "sigmoid", where the original takes a function.
        batch_dice: sums over the batch come first, and over the processes where `ddp`.
        do_bg: whether class 0 counts.
        smooth: added to both sides.
        ddp: add the sums of all processes of torch.distributed, where it runs.
        clip_tp: least tp, or None.

    Raises:
        ValueError: an argument or a target that does not fit.
        RuntimeError: a label that is not defined (on the CPU).

    Equivalent to: ``nnunetv2.training.loss.dice.SoftDiceLoss(apply_nonlin, ...)``.
    """

    def __init__(
        self,
        apply_nonlin: str = "softmax",
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
        clip_tp: float | None = None,
    ) -> None:
        super().__init__()
        check_choice("apply_nonlin", apply_nonlin, NONLINEARITIES)
        self.apply_nonlin = apply_nonlin
        self.batch_dice = batch_dice
        self.do_bg = do_bg
        self.smooth = smooth
        self.ddp = ddp
        self.clip_tp = clip_tp

    def forward(self, x: Tensor, y: Tensor, ignore_index: int | None = None) -> Tensor:
        """The loss of logits [N, C, *spatial]; y labels [N, (1,) *spatial], or a map a channel."""
        if self.apply_nonlin == "softmax":
            return self.of_sums(softmax_sums(x, y, ignore_index))
        return self.of_sums(sigmoid_sums(x, y, ignore_index)[0])

    def of_sums(self, sums: RegionSums) -> Tensor:
        """The loss of sums [N, C]."""
        s = sums if self.do_bg else without_first(sums)
        if self.batch_dice:
            s = over_batch(s)
            if self.ddp and torch.distributed.is_available() and torch.distributed.is_initialized():
                from torch.distributed.nn.functional import all_reduce

                s = RegionSums(*all_reduce(torch.stack(s)).unbind(0))
        tp = s.tp if self.clip_tp is None else s.tp.clamp_min(self.clip_tp)
        return -((2 * tp + self.smooth) / (2 * tp + s.fp + s.fn + self.smooth).clamp_min(1e-8)).mean()


MemoryEfficientSoftDiceLoss = SoftDiceLoss


class DC_and_CE_loss(nn.Module):
    """nnU-Net's soft Dice plus cross-entropy of softmax probabilities, from one pass.

    Args:
        soft_dice_kwargs: of `SoftDiceLoss`, without apply_nonlin.
        ce_kwargs: may hold "weight", one number a class; nothing else.
        weight_ce, weight_dice: of the two parts.
        ignore_label: label of pixels left out of both; where no others are, the cross-entropy is 0.
        dice_class: not used: both of the original's classes have the same value.

    Equivalent to: ``nnunetv2.training.loss.compound_losses.DC_and_CE_loss(...)``.
    """

    def __init__(
        self,
        soft_dice_kwargs: Mapping[str, Any],
        ce_kwargs: Mapping[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
        dice_class: type | None = None,
    ) -> None:
        super().__init__()
        _only(ce_kwargs, "ce_kwargs", "weight")
        self.dc = SoftDiceLoss("softmax", **soft_dice_kwargs)
        self.register_buffer("weight", as_weight(ce_kwargs.get("weight")))
        self.weight_ce = weight_ce
        self.weight_dice = weight_dice
        self.ignore_label = ignore_label

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """The loss of logits [N, C, *spatial] and labels [N, 1, *spatial]."""
        if target.shape != (net_output.shape[0], 1, *net_output.shape[2:]):
            raise wrong_value("target", f"shape {(net_output.shape[0], 1, *net_output.shape[2:])}", target)
        sums = softmax_sums(net_output, target, self.ignore_label)
        weight = sums.tp.new_ones(()) if self.weight is None else self.weight.to(sums.tp)
        count = (sums.sum_g * weight).sum()
        ce = (sums.ce * weight).sum() / torch.where(count == 0, 1.0, count)
        return self.weight_ce * ce + self.weight_dice * self.dc.of_sums(sums)


class DC_and_BCE_loss(nn.Module):
    """nnU-Net's soft Dice plus binary cross-entropy of sigmoid probabilities (its region-based training), one pass.

    Args:
        bce_kwargs: empty.
        soft_dice_kwargs: of `SoftDiceLoss`, without apply_nonlin.
        weight_ce, weight_dice: of the two parts.
        use_ignore_label: the target's last channel marks the pixels to leave out. The cross-entropy is then the
            sum over the channels, averaged over the pixels, as the original's.
        dice_class: not used.

    Equivalent to: ``nnunetv2.training.loss.compound_losses.DC_and_BCE_loss(...)``.
    """

    def __init__(
        self,
        bce_kwargs: Mapping[str, Any],
        soft_dice_kwargs: Mapping[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        use_ignore_label: bool = False,
        dice_class: type | None = None,
    ) -> None:
        super().__init__()
        _only(bce_kwargs, "bce_kwargs")
        self.dc = SoftDiceLoss("sigmoid", **soft_dice_kwargs)
        self.weight_ce = weight_ce
        self.weight_dice = weight_dice
        self.use_ignore_label = use_ignore_label

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """The loss of logits [N, C, *spatial] and 0-or-1 maps [N, C, *spatial], or C + 1 with the mark."""
        count, ignored = net_output.numel(), None
        if self.use_ignore_label:
            keep = target[:, -1:] == 0
            target = torch.where(keep, target[:, :-1].to(torch.uint8), _IGNORED)
            count, ignored = keep.sum().clamp_min(1), _IGNORED
        sums, ce_of_zero = sigmoid_sums(net_output, target, ignored)
        ce = (sums.ce + ce_of_zero).sum() / count
        return self.weight_ce * ce + self.weight_dice * self.dc.of_sums(sums)


_IGNORED = 255  # neither of the two labels


def _only(given: Mapping[str, Any], name: str, *known: str) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise wrong_value(name, f"no other keys than {list(known)}", unknown)
