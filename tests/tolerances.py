"""How far a kernel may be from the float64 reference, and why."""

import torch

#: float32 and float64 sums: relative to the largest magnitude in the result. Kernels add in another order
#: than the reference; blocks of a few hundred terms keep the error near the unit roundoff times ten.
RELATIVE = {torch.float32: 2e-5, torch.float64: 1e-12}

#: Half results are compared with plain PyTorch at the same dtype: ours may err at most this many times as much
#: as it does, plus one unit roundoff of the result's scale (both round the same exact value once).
HALF_FACTOR = 2.0
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

#: A whole network, all its gradients and running statistics against plain PyTorch, relative to each result's
#: largest magnitude: batch normalisation and the gate add in another order.
NETWORK = {torch.float32: 2e-4, torch.float64: 1e-12}

#: The losses against float64, published in benchmarks/results/0.1.0/loss-error.md: the value relative to itself (the
#: property tests draw losses near 0 too, and hold those to 1),
#: the gradient relative to its largest entry. Generalised Dice subtracts a quotient near
#: 1 from 1. Sums are float32 for every dtype; a half gradient is rounded once.
LOSS_VALUE = {torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}
LOSS_GRADIENT = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
