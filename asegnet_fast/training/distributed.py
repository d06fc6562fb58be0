"""Training by several processes that torchrun starts: who does what, and how all of them stop together.

Each process takes its share of every batch. Statistics of batch normalisation and of the loss are those of the whole
batch, gradients are averaged, so that a step is the step of one process up to rounding. Process 0 alone reads and
writes the run's folder. Without torchrun every function here does what one process needs, which is mostly nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from asegnet_fast.errors import InputError

Result = TypeVar("Result")

_asked_to_stop = False
_has_joined = False


class PeerError(RuntimeError):
    """Another process has stopped; what it says is the cause."""


class TakenOver(RuntimeError):
    """Another process does this work now, because this one was taken for dead."""


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 where there is one alone."""
    if _joined():
        return dist.get_rank()
    return int(os.environ["RANK"]) if launched() else 0


def size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if _joined() else 1


def first() -> bool:
    """Whether this process is the one that reads and writes the run's folder."""
    return rank() == 0


def speaks(error: BaseException) -> bool:
    """Whether this process is to print an error: what all of them raise is printed once."""
    return first() or (_has_joined and not getattr(error, "raised_by_all", False))


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started, for the time of a `with` block; alone, nothing is done.

    Ctrl-C and SIGTERM stop all processes together at the end of a step (`stop_together`).

    Raises:
        PeerError: at the next exchange after another process has died.
    """
    if not launched():
        yield
        return
    global _has_joined
    # gloo carries what is on the CPU: flags, counts, errors; nccl the gradients on GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    _has_joined = True
    before = {name: signal.signal(name, _ask_to_stop) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        dist.destroy_process_group()
    except BaseException as error:
        # Without the others' consent an orderly end would wait for them.
        if any(getattr(cause, "raised_by_all", False) for cause in (error, error.__context__)):
            dist.destroy_process_group()
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise PeerError("another process has stopped, so this one does") from error
        raise
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _ask_to_stop(*_: object) -> None:
    global _asked_to_stop
    _asked_to_stop = True


def stop_together(taken_over: bool = False) -> None:
    """Stop every process when one has to; each calls this at the same points.

    Args:
        taken_over: whether this process knows that its work was given to another.

    Raises:
        KeyboardInterrupt: one of the processes was asked to stop.
        TakenOver: one of them says `taken_over`.
    """
    asked = _asked_to_stop
    if size() > 1:
        flags = torch.tensor([asked, taken_over], dtype=torch.uint8)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        asked, taken_over = flags.bool().tolist()
    if asked:
        raise _by_all(KeyboardInterrupt())
    if taken_over:
        raise TakenOver


def everywhere(function: Callable[..., Result], *args: Any, **keywords: Any) -> Result:
    """Call a function in every process; when it raises in one, every process raises that error."""
    return _agreed(*_attempt(function, *args, **keywords))


def on_first(function: Callable[..., Result], *args: Any, **keywords: Any) -> Result:
    """Call a function in process 0 alone; every process gets its result (pickled), or raises its error."""
    if size() == 1:
        return function(*args, **keywords)
    result, error = _attempt(function, *args, **keywords) if first() else (None, None)
    box = [result, error]
    dist.broadcast_object_list(box, src=0)
    result, error = box
    if error is not None:
        raise _by_all(error)
    return result


def _attempt(function: Callable, *args: Any, **keywords: Any) -> tuple[Any, Exception | None]:
    try:
        return function(*args, **keywords), None
    except Exception as error:
        if size() == 1:
            raise
        return None, error


def _agreed(result: Any, error: Exception | None) -> Any:
    if size() == 1:
        return result
    errors: list = [None] * size()
    dist.all_gather_object(errors, error)
    for found in errors:
        if found is not None:
            raise _by_all(found)
    return result


def _by_all(error: BaseException) -> BaseException:
    error.raised_by_all = True
    return error


def own_device(device: str) -> str:
    """The GPU of this process among those of its machine, where `device` names a GPU without a number.

    Raises:
        ValueError: the machine has fewer GPUs than processes.
    """
    if device != "cuda" or not launched():
        return device
    local = int(os.environ.get("LOCAL_RANK", rank()))
    if local >= torch.cuda.device_count():
        raise InputError(
            f"--device: expected a GPU for each process of a machine, got {torch.cuda.device_count()} GPUs "
            f"for process {local + 1}"
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def share(indices: Tensor | np.ndarray) -> Any:
    """This process's part of a batch or a list of slices, [n] -> [about n / processes]; the parts are contiguous."""
    n, k, r = len(indices), size(), rank() if _joined() else 0
    return indices[n * r // k : n * (r + 1) // k]


def gather(parts: np.ndarray) -> np.ndarray:
    """What the processes have made of their shares, joined in their order along the first axis."""
    if size() == 1:
        return parts
    found: list = [None] * size()
    dist.all_gather_object(found, parts)
    return np.concatenate(found)


def parallel(network: nn.Module) -> nn.Module:
    """The network as it is called in training: gradients averaged and batch statistics common over all processes.

    Args:
        network: on its device, the same in every process; its batch normalisations are converted in place. What is
            returned shares its parameters and buffers.
    """
    if size() == 1:
        return network
    from asegnet_fast.nn import SyncBatchNormReLU2d

    SyncBatchNormReLU2d.convert_sync_batchnorm(network)
    # A 1x1 kernel in channels_last has the same bytes under other strides.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has another name for the option
        # Buffers are equal already: every process computes the same statistics from the same numbers.
        return nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)


def common_loss(loss: nn.Module) -> nn.Module:
    """A loss of `asegnet_fast.nn` over the whole batch: `asegnet_fast.nn.SyncLoss`."""
    if size() == 1:
        return loss
    from asegnet_fast.nn import SyncLoss

    return SyncLoss(loss)
