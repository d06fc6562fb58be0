"""Files that are either whole or absent: everything the program leaves behind is written through here."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asegnet_fast.errors import InputError

#: How every temporary name begins, so that what a killed process left can be told from a user's files.
_TEMPORARY = ".asegnet-fast-"
#: Nobody writes one file for so long; of a process on another machine nothing else can be known.
_ABANDONED_SECONDS = 24 * 3600.0


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that no process of any machine chooses twice."""
    # The end stays, because it decides how some writers write.
    return path.with_name(f"{_TEMPORARY}{_host()}-{os.getpid()}-{secrets.token_hex(4)}.{path.name}")


def is_temporary(path: Path) -> bool:
    """Whether a file or folder has the name of one that is still being written, or never was finished."""
    return path.name.startswith(_TEMPORARY)


def remove_leftovers(folder: Path) -> int:
    """Remove what killed processes left half-written in a folder; what a living one writes stays.

    Args:
        folder: the folder, whose subfolders are not looked into.

    Returns:
        How many files and folders were removed.
    """
    removed = 0
    for path in Path(folder).iterdir() if Path(folder).is_dir() else ():
        if is_temporary(path) and not _is_being_written(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            removed += 1
    return removed


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", platform.node())[:24] or "unnamed"


def _is_being_written(path: Path) -> bool:
    """Whether the process in a temporary name still runs; of another machine's, whether it can."""
    host, pid, *_ = path.name.removeprefix(_TEMPORARY).split("-")
    if host == _host() and pid.isdecimal() and os.name == "posix":
        try:
            os.kill(int(pid), 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass
        return True
    try:
        return time.time() - path.stat().st_mtime < _ABANDONED_SECONDS
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary name beside `path`; when the block ends well, flush it to disk and rename it to `path`.

    Args:
        path: the file to write; its folder is made when absent.
        previous: where to keep the file that lay at `path` before; None: it is replaced.

    Returns:
        A context manager over the temporary path. When the block raises, the temporary file is removed and
        what lay at `path` before stays.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        # A full disk is reported without a name, or with the temporary one.
        if error.errno is not None and error.filename in (None, str(temporary)):
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Bring a folder's names to disk, without which a rename may be forgotten when the machine loses power."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot, and need not
            raise
    finally:
        os.close(descriptor)


def create_text(path: Path, text: str) -> bool:
    """Write `text` (UTF-8) to `path` in one step unless there is a file already; safe on NFS too.

    Args:
        path: the file, in a folder that is there.
        text: its content.

    Returns:
        Whether this call made the file. Of several that try at once, exactly one does.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            # NFS may repeat a request whose answer was lost; the number of names tells who won.
            return os.stat(temporary).st_nlink == 2
        except OSError:  # a file system without hard links
            with contextlib.suppress(FileExistsError), open(path, "x", encoding="utf-8") as stream:
                stream.write(text)
                return True
            return False
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(out: Path) -> None:
    """Refuse a path for `--out` where no folder can be made or written.

    Args:
        out: the folder; it need not be there.

    Raises:
        ValueError: a file is in the way, or the folder is another's.
    """
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(
            f"--out: expected a folder, got {'' if there == out else 'a path through '}a file ({out})"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--out: expected a folder that can be written, got {out}")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON (indented; NaN and infinity are refused) to `path` in one step."""
    write_text(path, _json(value))


def create_json(path: Path, value: Any) -> bool:
    """`create_text` of `value` as JSON."""
    return create_text(path, _json(value))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file is absent, unreadable, not JSON or not an object; the message names it.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: expected a JSON file, got nothing (no such file)") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON file, got an unreadable one ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write dictionaries with the same keys as CSV with a header line to `path` in one step."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header line.

    Raises:
        ValueError: the file is absent or unreadable; the message names it.
    """
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a CSV file, got an unreadable one ({error})") from None
