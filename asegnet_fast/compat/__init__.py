"""Losses with the names, arguments and values of other libraries, made from this package's one pass over the logits.

    from asegnet_fast.compat.monai import DiceLoss      # for monai.losses
    from asegnet_fast.compat.smp import TverskyLoss     # for segmentation_models_pytorch.losses
    from asegnet_fast.compat.nnunet import DC_and_CE_loss

Values and gradients are theirs wherever those are right. They differ in three points, always:

- **Sums are float32** (float64 for float64 logits). The originals sum in the input's dtype, where float16 overflows
  at 256 x 256 pixels and bfloat16 loses all but two digits, and the loss has that dtype.
- **False positives and false negatives are summed by themselves**, not as differences of larger sums, which lose
  their digits where a prediction is confident.
- **Logits and hard labels only.** Settings that need probabilities, soft labels or another activation raise a
  ValueError that names the argument; keep the original there.

Where an original is wrong, its class here says what it does instead.
"""

from asegnet_fast.compat import monai, nnunet, smp

__all__ = ["monai", "nnunet", "smp"]
