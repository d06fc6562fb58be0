"""Which patient each slice belongs to, read from a CSV that overrides the default of one group per file."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from asegnet_fast.data.errors import DataError

_COLUMNS = ("file", "first", "last", "patient")


@dataclass(frozen=True)
class GroupRange:
    """Slices first..last (both included) of a file belong to a patient."""

    first: int
    last: int
    patient: str


def read_groups(path: str | os.PathLike, slice_counts: dict[str, int]) -> dict[str, list[GroupRange]]:
    """Reads a groups CSV with the header `file,first,last,patient`.

    Args:
        path: the CSV; `file` is relative to the data root, `first` and `last` are slice indices, both
            included.
        slice_counts: number of slices of each image file of the set.

    Returns:
        The ranges of each file, by file.

    Raises:
        DataError: unreadable, another header, a bad number, a file that is not in the set, slices the file
            does not have, overlapping ranges, an empty patient.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a readable CSV of groups, got {_reason(error)}") from None
    header = tuple(cell.strip() for cell in rows[0][1]) if rows else ()
    if header != _COLUMNS:
        raise DataError(
            f"{path}: expected the header {','.join(_COLUMNS)}, got {','.join(header) or 'nothing'}"
        )
    ranges: dict[str, list[GroupRange]] = {}
    for number, row in rows[1:]:
        where = f"{path} line {number}"
        if len(row) != len(_COLUMNS):
            raise DataError(f"{where}: expected {len(_COLUMNS)} columns, got {len(row)}")
        file, first, last, patient = (cell.strip() for cell in row)
        file = file.replace("\\", "/").removeprefix("./")
        if file not in slice_counts:
            raise DataError(f"{where}: expected an image file of the set, got {file!r}")
        if not (first.isdecimal() and last.isdecimal()):
            raise DataError(
                f"{where}: expected slice numbers from 0 for first and last, got {first!r} and {last!r}"
            )
        new = GroupRange(int(first), int(last), patient)
        if not new.first <= new.last < slice_counts[file]:
            raise DataError(
                f"{where}: expected first <= last <= {slice_counts[file] - 1} for {file}, "
                f"got {first} and {last}"
            )
        if not patient:
            raise DataError(f"{where}: expected a patient, got an empty cell")
        for old in ranges.setdefault(file, []):
            if new.first <= old.last and old.first <= new.last:
                raise DataError(
                    f"{where}: expected ranges that do not overlap, slice "
                    f"{max(new.first, old.first)} of {file} is in two"
                )
        ranges[file].append(new)
    return ranges


def assign_groups(
    path: str | os.PathLike, sources: tuple[str, ...], indices: tuple[int, ...], slice_counts: dict[str, int]
) -> tuple[str, ...]:
    """Returns the patient of each slice from a groups CSV.

    Raises:
        DataError: as `read_groups`; or a slice of the set is in no range.
    """
    ranges = read_groups(path, slice_counts)
    groups = []
    for source, index in zip(sources, indices, strict=True):
        patients = [r.patient for r in ranges.get(source, ()) if r.first <= index <= r.last]
        if not patients:
            raise DataError(
                f"{path}: expected a patient for every slice used, got none for {source} slice {index}"
            )
        groups.append(patients[0])
    return tuple(groups)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
