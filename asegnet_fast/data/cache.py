"""Decoded slices kept in one `.npz` file, so that a set is decompressed and resized once."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from asegnet_fast.data.errors import DataError
from asegnet_fast.data.files import replacing

# Raise it whenever decoding changes what the arrays hold.
FORMAT_VERSION = 2


def cache_key(root: Path, files: list[str], options: dict) -> str:
    """sha256 over names, sizes and modification times of the files, the options and the format version."""
    listed = []
    for name in files:
        try:
            status = os.stat(root / name)
        except OSError as error:
            raise DataError(f"{name}: expected a readable file, got {error.strerror}") from None
        listed.append([name, status.st_size, status.st_mtime_ns])
    text = json.dumps([FORMAT_VERSION, listed, options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def cache_path(folder: str | os.PathLike, key: str) -> Path:
    """Where the slices of a key lie; makes the folder.

    Raises:
        DataError: the folder cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: expected a folder for the cache, got {error.strerror}") from None
    return folder / f"slices-{key[:32]}.npz"


def read_cache(path: Path, key: str) -> tuple[np.ndarray, np.ndarray, dict] | str | None:
    """Reads images, masks and the record beside them.

    Returns:
        (images, masks, record); None where there is no such file; a reason where it cannot be used.
    """
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            images, masks = stored["images"], stored["masks"]
            record = json.loads(stored["record"].tobytes())
        if record["key"] != key or record["digest"] != _digest(images, masks):
            return "its checksum does not match"
        if images.dtype != np.uint8 or masks.dtype != np.uint8 or images.shape != masks.shape:
            return "its arrays have other shapes or types"
    # zipfile and numpy raise many types on damaged bytes; whatever it is, the file is decoded anew.
    except Exception as error:
        return str(error) or type(error).__name__
    return images, masks, record


def write_cache(path: Path, key: str, images: np.ndarray, masks: np.ndarray, record: dict) -> str | None:
    """Writes a cache file under a temporary name and renames it.

    Returns:
        None, or why it could not be written; the decoded slices are then still good.
    """
    text = json.dumps({**record, "key": key, "digest": _digest(images, masks)})
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, images=images, masks=masks, record=np.frombuffer(text.encode(), np.uint8))
    except DataError as error:
        return str(error)
    return None


def _digest(images: np.ndarray, masks: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in (images, masks):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
