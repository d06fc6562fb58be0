"""Other processes to test with, started once for all tests, because each takes seconds to import torch."""

import atexit
import functools
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

WORLD = 2  # processes that train together
_folder = tempfile.TemporaryDirectory(prefix="asegnet-fast-tests-")


def together(function: Callable, *args: Any) -> list[Any]:
    """`function(rank, *args)` in two processes with torch.distributed (gloo) between them; what each returned.

    Args:
        function: of a module, so that it can be named to another process.
        args, and what it returns: anything that can be pickled.
    """
    return _call(WORLD, True, function, args)


def apart(count: int, function: Callable, *args: Any) -> list[Any]:
    """`function(number, *args)` in several processes at once, each by itself, this one the last; as `together`."""
    return _call(count - 1, False, function, args)


def _call(count: int, joined: bool, function: Callable, args: tuple) -> list[Any]:
    pipes = [_process(number) for number in range(count)]
    store = tempfile.mktemp(dir=_folder.name)
    for pipe in pipes:
        pipe.send((store if joined else None, function, args))
    own = [] if joined else [(False, function(count, *args))]
    answers = [pipe.recv() for pipe in pipes] + own
    for failed, answer in answers:
        if failed:
            raise AssertionError(answer)
    return [answer for _, answer in answers]


@functools.cache
def _process(number: int) -> Any:
    import torch

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # The same number of threads here and there: sums over threads are made in another order with another number.
    context.Process(target=_serve, args=(number, torch.get_num_threads(), theirs), daemon=True).start()
    atexit.register(ours.send, None)
    return ours


def _serve(number: int, threads: int, pipe: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(threads)
    while (work := pipe.recv()) is not None:
        store, function, args = work
        torch.manual_seed(0)
        if store is not None:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=WORLD)
        try:
            pipe.send((False, function(number, *args)))
        except BaseException:
            pipe.send((True, f"process {number}: {traceback.format_exc()}"))
        finally:
            if store is not None:
                dist.destroy_process_group()
