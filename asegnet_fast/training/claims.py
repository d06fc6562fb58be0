"""Who trains which fold: claims in the run's folder, for processes on one or several machines.

A process trains a fold while it holds the fold's claim, a small file in the fold's folder. Claims are numbered:
`claim-1.json` is made by the first to come; whoever finds the newest claim dead makes the next number. Making a file
that must not exist yet is the only thing that has to be atomic, also on NFS, and nobody ever removes another's living
claim. The holder touches its file while it works. A claim is dead when its process is gone from this machine, or when
nobody has touched it for some time by the watcher's own clock, so that machines need not agree about the time.

Should a holder sleep so long that its fold is given to another, both go through the same steps to the same files, each
of which is whole at any time; the one that sleeps notices at its next step and leaves the fold.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asegnet_fast.files import create_text

#: A claim that nobody has touched for so long is dead. NFS may show a touch after a minute.
STALE_SECONDS = 180.0
#: How often a holder touches its claim within that time.
BEATS = 10


@dataclass(frozen=True)
class Holder:
    """Who holds a claim: host, the host's start, process, when that began, and a word of its own."""

    host: str
    boot: str
    pid: int
    began: str
    token: str

    @classmethod
    def this_process(cls) -> Holder:
        return cls(socket.gethostname(), _boot(), os.getpid(), _began(os.getpid()), secrets.token_hex(8))

    def is_gone(self) -> bool:
        """Whether it ran on this machine and runs no more; False where that cannot be known from here."""
        if (self.host, self.boot) != (socket.gethostname(), _boot()) or not self.boot:
            return False
        return _began(self.pid) != self.began


def _boot() -> str:
    """This start of this machine, and the container whose process numbers count; empty where nothing tells."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _began(pid: int) -> str:
    """When a process of this machine began, so that a number given out again is noticed; empty when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class Claim:
    """A fold's claim while this process holds it; touched by a thread until it is released."""

    def __init__(self, folder: Path, number: int, holder: Holder, stale_seconds: float) -> None:
        self._path = _claim(folder, number)
        self._folder, self._number, self._token = folder, number, holder.token
        self._lost = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(stale_seconds / BEATS,), daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether another process holds the fold now."""
        return self._lost

    def _beat(self, seconds: float) -> None:
        while not self._released.wait(seconds):
            if not self._is_newest():
                self._lost = True
                return
            try:
                os.utime(self._path)
            except FileNotFoundError:
                self._lost = True
                return
            except OSError:
                continue  # a file server that is away for a moment

    def _is_newest(self) -> bool:
        newest = _newest(self._folder)
        holder = None if newest is None else _read(newest[1])
        return holder is None or (newest[0], holder.token) == (self._number, self._token)

    def release(self) -> None:
        """Let others have the fold: the claims up to this one are taken away, later ones stay."""
        self._released.set()
        self._thread.join()
        if self._lost or not self._is_newest():
            return
        for number, path in sorted(_claims(self._folder)):  # this one last, so that no dead one is the newest
            if number <= self._number:
                path.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Take this claim alone away."""
        self._released.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)


class Watch:
    """Takes claims, and remembers when each foreign one was last seen to move.

    Args:
        stale_seconds: a claim that does not move for so long is dead.
    """

    def __init__(self, stale_seconds: float = STALE_SECONDS) -> None:
        self._stale_seconds = stale_seconds
        self._seen: dict[Path, tuple[Any, float]] = {}

    def take(self, folder: Path) -> Claim | None:
        """The claim of a fold, or None where another process holds it."""
        number, dead = 0, None
        if (newest := _newest(folder)) is not None:
            number, path = newest
            dead = _read(path)
            if not self._is_dead(path, dead):
                return None
        own = Holder.this_process()
        folder.mkdir(parents=True, exist_ok=True)
        if not create_text(_claim(folder, number + 1), json.dumps(vars(own))):
            return None
        claim = Claim(folder, number + 1, own, self._stale_seconds)
        # While this process looked, the dead claim may have been cleared away and its number taken anew.
        if number > 0 and _read(_claim(folder, number)) not in (dead, None):
            claim.withdraw()
            return None
        return claim

    def clear(self, folder: Path) -> None:
        """Remove the dead claims of a fold that is done: its process was killed before it let go."""
        for _, path in _claims(folder):
            if self._is_dead(path, _read(path)):
                path.unlink(missing_ok=True)

    def anybody_works(self, folders: Sequence[Path]) -> bool:
        """Whether one of the folds has a claim that is not known to be dead."""
        newest = [found for folder in folders if (found := _newest(folder)) is not None]
        return any(not self._is_dead(path, _read(path)) for _, path in newest)

    def _is_dead(self, path: Path, holder: Holder | None) -> bool:
        """Whether a claim's holder is gone or has not touched it for too long."""
        try:
            with open(path, "rb") as stream:  # opening makes NFS ask its server
                moved = os.fstat(stream.fileno()).st_mtime_ns
        except OSError:  # released at this moment, or out of reach: look again later
            return False
        if holder is not None and holder.is_gone():
            return True
        now = time.monotonic()
        state, since = self._seen.get(path, (None, now))
        if state != (moved, holder):
            self._seen[path] = ((moved, holder), now)
            return False
        return now - since >= self._stale_seconds


def holder_of(folder: Path) -> Holder | None:
    """Who holds a fold, as far as its files say."""
    newest = _newest(folder)
    return None if newest is None else _read(newest[1])


def _claim(folder: Path, number: int) -> Path:
    return folder / f"claim-{number}.json"


def _claims(folder: Path) -> list[tuple[int, Path]]:
    found = ((path.stem.removeprefix("claim-"), path) for path in folder.glob("claim-*.json"))
    return [(int(number), path) for number, path in found if number.isdecimal()]


def _newest(folder: Path) -> tuple[int, Path] | None:
    return max(_claims(folder), default=None)


def _read(path: Path) -> Holder | None:
    """The holder in a claim, or None where it is being written, gone or damaged."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
