"""How much of a training step is not convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from asegnet_fast.training.config import Row, Settings
from asegnet_fast.training.steps import Slices, initial_network, optimiser_of, training_step

WARM_UP_STEPS = 2
STEPS = 3


def outside_convolution(settings: Settings, row: Row, slices: Slices, train: np.ndarray) -> dict[str, Any]:
    """Profile a few training steps of a row, on a network of its own.

    The share is 1 - (self time of operators whose name contains "conv") / (self time of all operators), in CPU
    time on a CPU and in kernel time on a GPU.

    Args:
        settings: the run's settings.
        row: model and loss.
        slices: the data on the device.
        train: indices of training slices, at least one batch.

    Returns:
        {"share": 0..1, "clock": "self CPU time" or "self CUDA time", "steps"}.
    """
    device = slices.images.device
    network = initial_network(settings, row.model, slices.num_classes, 0).to(device).train()
    optimiser = optimiser_of(network, settings)
    loss_of = row.loss.function()
    normalisation = {"mean": 128.0, "sd": 64.0}  # the time does not depend on it
    batch = torch.from_numpy(train[: settings.batch_size]).to(device)

    def steps(count: int) -> None:
        for _ in range(count):
            training_step(network, loss_of, optimiser, slices, batch, normalisation, settings.precision)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    steps(WARM_UP_STEPS)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        steps(STEPS)

    total = convolution = 0.0
    for event in profiler.key_averages():
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # kernels are counted by the operator that launched them
        time = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        total += time
        if "conv" in event.key.lower():
            convolution += time
    clock = "self CUDA time" if device.type == "cuda" else "self CPU time"
    return {"share": round(1 - convolution / total, 4), "clock": clock, "steps": STEPS}
