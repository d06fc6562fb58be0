"""Loss modules over `asegnet_fast.ops.tversky`: softmax included, logits and integer labels in, a scalar out.

Each takes (logits [N, C, *spatial], target [N, *spatial]); the formulas stand at the functions they call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from asegnet_fast.ops._checks import check_choice
from asegnet_fast.ops.tversky import op
from asegnet_fast.ops.tversky.op import ALPHA, BETA, EPS, EPS_GENERALIZED_DICE, GAMMA


class _RegionLoss(nn.Module):
    """Keeps a loss function's options as attributes, and the class weights as a buffer that moves with the module."""

    _function: Callable[..., Tensor]
    _kind: str  # as `op.loss_from_sums` names the loss

    def __init__(self, weight: Tensor | Sequence[float] | None, **options: object) -> None:
        super().__init__()
        checked = {name: value for name, value in options.items() if name not in ("variant", "ignore_index")}
        op.check_options(**{"alpha": ALPHA, "beta": BETA, "gamma": GAMMA, **checked})
        self._names = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)
        op.check_ignore_index(options["ignore_index"])
        if weight is not None:
            weight = weight if isinstance(weight, Tensor) else op.numbers(weight)
            weight = torch.as_tensor(weight, dtype=torch.get_default_dtype())
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        options = {name: getattr(self, name) for name in self._names}
        return type(self)._function(logits, target, weight=self.weight, **options)

    def of_sums(self, sums: op.RegionSums) -> Tensor:
        """The loss of sums that `asegnet_fast.region_sums` made, with this `ignore_index`.

        Equivalent to: the module on the logits and labels that the sums came from.
        """
        options = {name: getattr(self, name) for name in self._names if name != "ignore_index"}
        return op.loss_from_sums(sums, weight=self.weight, **self._of_sums_options(**options))

    def _of_sums_options(self, **options: object) -> dict[str, object]:
        return {"kind": self._kind, **options}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names)


class DiceLoss(_RegionLoss):
    """Dice loss of softmax probabilities.

    Args: as `asegnet_fast.dice_loss`.

    Equivalent to: ``asegnet_fast.dice_loss(logits, target, ...)``.
    """

    _function = staticmethod(op.dice_loss)

    def _of_sums_options(self, variant: str, **options: object) -> dict[str, object]:
        return {"kind": op.DICE_KINDS[variant], "alpha": 0.5, "beta": 0.5, **options}

    def __init__(
        self,
        variant: str = "soft",
        eps: float = EPS,
        reduce_over: str = "image",
        include_background: bool = True,
        ignore_index: int | None = None,
        weight: Tensor | Sequence[float] | None = None,
    ) -> None:
        check_choice("variant", variant, op.DICE_KINDS)
        super().__init__(
            weight,
            variant=variant,
            eps=eps,
            reduce_over=reduce_over,
            include_background=include_background,
            ignore_index=ignore_index,
        )


class GeneralizedDiceLoss(_RegionLoss):
    """Generalised Dice loss, classes weighted by the inverse square of their size.

    Args: as `asegnet_fast.generalized_dice_loss`.

    Equivalent to: ``asegnet_fast.generalized_dice_loss(logits, target, ...)``.
    """

    _function = staticmethod(op.generalized_dice_loss)
    _kind = "generalized_dice"

    def __init__(
        self,
        eps: float = EPS_GENERALIZED_DICE,
        reduce_over: str = "image",
        include_background: bool = True,
        ignore_index: int | None = None,
        weight: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            weight,
            eps=eps,
            reduce_over=reduce_over,
            include_background=include_background,
            ignore_index=ignore_index,
        )


class TverskyLoss(_RegionLoss):
    """Tversky loss; alpha weighs false positives, beta false negatives.

    Args: as `asegnet_fast.tversky_loss`.

    Equivalent to: ``asegnet_fast.tversky_loss(logits, target, ...)``.
    """

    _function = staticmethod(op.tversky_loss)
    _kind = "tversky"

    def __init__(
        self,
        alpha: float = ALPHA,
        beta: float = BETA,
        eps: float = EPS,
        reduce_over: str = "image",
        include_background: bool = True,
        ignore_index: int | None = None,
        weight: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            weight,
            alpha=alpha,
            beta=beta,
            eps=eps,
            reduce_over=reduce_over,
            include_background=include_background,
            ignore_index=ignore_index,
        )


class FocalTverskyLoss(_RegionLoss):
    """Focal Tversky loss; the exponent is 1 / gamma.

    Args: as `asegnet_fast.focal_tversky_loss`.

    Equivalent to: ``asegnet_fast.focal_tversky_loss(logits, target, ...)``.
    """

    _function = staticmethod(op.focal_tversky_loss)
    _kind = "tversky"

    def __init__(
        self,
        alpha: float = ALPHA,
        beta: float = BETA,
        gamma: float = GAMMA,
        eps: float = EPS,
        reduce_over: str = "image",
        include_background: bool = True,
        ignore_index: int | None = None,
        weight: Tensor | Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            weight,
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            eps=eps,
            reduce_over=reduce_over,
            include_background=include_background,
            ignore_index=ignore_index,
        )


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss`, fused for labels (not probabilities), reduction "mean" and no label smoothing.

    Other settings, and inputs without a batch or with one class, run torch's own path. The fused path takes labels
    of any integer dtype; it differs from torch's in two points: where every pixel is ignored it gives 0, not NaN,
    and for half inputs the loss is float32.

    Args:
        weight, size_average, ignore_index, reduce, reduction, label_smoothing: as torch's.

    Raises: as `asegnet_fast.cross_entropy_loss` on the fused path.

    Equivalent to: ``torch.nn.CrossEntropyLoss(...)``.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        fused = (
            self.has_sums()
            and isinstance(target, Tensor)
            and not target.is_floating_point()
            and input.dim() >= 2
            and input.shape[1] >= 2
        )
        if not fused:
            return super().forward(input, target)
        return op.cross_entropy_loss(input, target, self.ignore_index, self.weight)

    def has_sums(self) -> bool:
        """Whether the options are those of a loss made from region sums."""
        return self.reduction == "mean" and self.label_smoothing == 0

    def of_sums(self, sums: op.RegionSums) -> Tensor:
        """The loss of sums that `asegnet_fast.region_sums` made, with this `ignore_index`."""
        return op.loss_from_sums(sums, "cross_entropy", weight=self.weight)
