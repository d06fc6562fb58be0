"""Benchmarks: every op and a whole training step against eager PyTorch and torch.compile."""
