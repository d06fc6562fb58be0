"""How far a kernel may be from the float64 reference, and why."""

import torch

#: Selections and copies: no arithmetic happens, so every bit must agree.
EXACT = 0.0

#: float32 and float64 sums: relative to the largest magnitude in the result. Kernels add in another order
#: than the reference; blocks of a few hundred terms keep the error near the unit roundoff times ten.
RELATIVE = {torch.float32: 2e-5, torch.float64: 1e-12}

#: Half results are compared with plain PyTorch at the same dtype: ours may err at most this many times as much
#: as it does, plus one unit roundoff of the result's scale (both round the same exact value once).
HALF_FACTOR = 2.0
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

#: A whole A-SegNet, all its gradients and running statistics against plain PyTorch, relative to each result's
#: largest magnitude: only the gate adds in another order. The most that was seen (6 seeds) is 5e-5 and 1e-13, both
#: in the gradient of psi's bias, a sum over all pixels whose terms nearly cancel; outputs stay below 1e-6.
#: A SegNet has no sums of its own: `EXACT`.
NETWORK = {torch.float32: 2e-4, torch.float64: 1e-12}

#: The losses against float64, published in benchmarks/results/0.1.0/loss-error.md: the value relative to itself,
#: the gradient relative to its largest entry. Generalised Dice subtracts a quotient near
#: 1 from 1. Sums are float32 for every dtype; a half gradient is rounded once.
LOSS_VALUE = {torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
LOSS_GRADIENT = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
