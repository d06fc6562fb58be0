"""Several processes of this machine that work on one run, and what they show in one place."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable
from typing import Any

from asegnet_fast.training.loop import TrainingError
from asegnet_fast.training.progress import Reporter

#: What asks a process to stop.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: How long processes may take to end after Ctrl-C before they are killed.
GRACE_SECONDS = 20.0


def run_workers(count: int, reporter: Reporter, target: Callable, *arguments: Any) -> None:
    """Call `target(number, reporter, *arguments)` in `count` new processes and wait for all of them.

    The CPU's cores are divided among them. A process that dies is reported, the others go on. Ctrl-C is passed on.

    Args:
        count: how many.
        reporter: shows what they report.
        target: of a module; its arguments can be pickled.

    Raises:
        KeyboardInterrupt: interrupted, after all processes have ended.
        Exception: the first error of a process, after the others were interrupted too.
        TrainingError: all of them have died.
    """
    import torch

    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    threads = max(1, torch.get_num_threads() // count)
    processes = [
        context.Process(target=_work, args=(number, messages, threads, target, arguments), daemon=True)
        for number in range(1, count + 1)
    ]
    # Until a process can answer in order, signals wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for process in processes:
        process.start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        error = _watch(processes, messages, reporter)
    except BaseException:
        _interrupt(processes, messages)
        raise
    if error is not None:
        _interrupt(processes, messages)
        raise error


def _watch(processes: list, messages: Any, reporter: Reporter) -> Exception | None:
    """Show what comes until all processes have ended well, or one reports an error."""
    mourned: set[int] = set()
    while True:
        living = [process for process in processes if process.is_alive()]
        try:
            while True:
                number, kind, content = messages.get(timeout=0.2)
                if kind == "error":
                    return content
                getattr(reporter, kind)(*content)
        except queue.Empty:
            pass
        for number, process in enumerate(processes, 1):
            if process.exitcode not in (None, 0) and number not in mourned:
                mourned.add(number)
                how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"status {process.exitcode}"
                reporter.say(f"process {number} of {len(processes)} has died ({how})")
        if not living:
            if len(mourned) == len(processes):
                return TrainingError("all processes have died; the same command with --resume continues")
            return None


def _interrupt(processes: list, messages: Any) -> None:
    """Ctrl-C for every process, and an end to those that do not heed it."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    messages.cancel_join_thread()
    drain = threading.Thread(target=_drain, args=(messages,), daemon=True)
    drain.start()  # a process whose messages nobody takes cannot end
    for process in processes:
        process.join(GRACE_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _drain(messages: Any) -> None:
    while True:
        messages.get()


class _Messenger(Reporter):
    """A reporter whose words go to the parent process."""

    def __init__(self, number: int, messages: Any) -> None:
        super().__init__()
        self._number, self._messages = number, messages

    def _send(self, kind: str, *content: Any) -> None:
        self._messages.put((self._number, kind, content))

    def say(self, text: str) -> None:
        self._send("say", f"[{self._number}] {text}")

    def folds(self, done: int, total: int, row: str, fold: int) -> None:
        self._send("folds", done, total, row, fold)

    def loading(self, done: int, total: int, file: str) -> None:
        pass


def _work(number: int, messages: Any, threads: int, target: Callable, arguments: tuple) -> None:
    import torch

    from asegnet_fast.environment import keep_large_allocations

    keep_large_allocations()
    torch.set_num_threads(threads)
    try:
        for name in SIGNALS:
            signal.signal(name, _interrupt_once)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        _end_with_parent()
        target(number, _Messenger(number, messages), *arguments)
    except KeyboardInterrupt:
        pass
    except Exception as error:
        try:
            pickle.dumps(error)
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        messages.put((number, "error", error))


_interrupted = False


def _interrupt_once(*_: object) -> None:
    # A terminal or a batch system signals every process, and the parent passes it on: the second signal must not
    # break the clearing up.
    global _interrupted
    if not _interrupted:
        _interrupted = True
        raise KeyboardInterrupt


def _end_with_parent() -> None:
    """Interrupt this process when its parent has died."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def gpu_for(device: str, number: int) -> str:
    """The device of worker `number`, from 1: where `device` is `cuda`, the machine's GPUs in turn."""
    import torch

    if device != "cuda":
        return device
    return f"cuda:{(number - 1) % torch.cuda.device_count()}"
