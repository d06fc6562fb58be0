"""Cross-validation folds over slices, by patient (honest) or by slice (leaky), and their file."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asegnet_fast.data.errors import DataError
from asegnet_fast.data.files import replacing
from asegnet_fast.data.medseg import SliceSet
from asegnet_fast.errors import InputError

SPLITS = ("patient", "slice")
_FORMAT = "asegnet_fast folds 1"


@dataclass(frozen=True)
class Folds:
    """A division of slices into k test folds.

    Attributes:
        split: `patient` (groups are never divided) or `slice`.
        k: number of folds.
        seed: what they were drawn with.
        test: per fold, the rising positions of its test slices; disjoint, together all slices.
        leak_percent: percent of slices that, when tested, have a neighbour (the same file and group, index
            one more or less) in the training part of that fold.
    """

    split: str
    k: int
    seed: int
    test: tuple[tuple[int, ...], ...]
    leak_percent: float

    def test_indices(self, fold: int) -> np.ndarray:
        """Rising int64 positions of the test slices of a fold, 0..k-1."""
        return np.array(self.test[self._checked(fold)], dtype=np.int64)

    def train(self, fold: int) -> np.ndarray:
        """Rising int64 positions of all other slices."""
        others = [
            position for k, part in enumerate(self.test) if k != self._checked(fold) for position in part
        ]
        return np.sort(np.array(others, dtype=np.int64))

    def _checked(self, fold: int) -> int:
        if not 0 <= fold < self.k:
            raise InputError(f"fold: expected 0 to {self.k - 1}, got {fold}")
        return fold


def make_folds(slices: SliceSet, k: int = 5, split: str = "patient", seed: int = 0) -> Folds:
    """Divides slices into k folds of nearly equal size.

    `patient` gives the groups, largest first and in seeded order among equals, each to the fold with the
    fewest slices. `slice` deals a seeded permutation.

    Args:
        slices: the set.
        k: number of folds, 2 or more, at most the number of groups (`patient`) or slices (`slice`).
        split: `patient` or `slice`.
        seed: 0 or more; the same seed gives the same folds.

    Returns:
        The folds; none is empty.

    Raises:
        ValueError: k, split or seed outside its range.
    """
    if split not in SPLITS:
        raise InputError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if seed < 0:
        raise InputError(f"seed: expected 0 or more, got {seed}")
    names = sorted(set(slices.groups))
    units = len(names) if split == "patient" else len(slices)
    if not 2 <= k <= units:
        what = "groups (patients or files)" if split == "patient" else "slices"
        raise InputError(f"folds: expected 2 to {units}, the number of {what} in the set, got {k}")
    rng = np.random.default_rng(seed)
    if split == "slice":
        parts = np.array_split(rng.permutation(len(slices)), k)
    else:
        groups = np.array(slices.groups)
        members = [np.flatnonzero(groups == names[i]) for i in rng.permutation(len(names))]
        parts = [np.empty(0, np.int64)] * k
        # sorted() is stable, so groups of one size keep their seeded order.
        for member in sorted(members, key=len, reverse=True):
            smallest = min(range(k), key=lambda fold: len(parts[fold]))
            parts[smallest] = np.concatenate([parts[smallest], member])
    test = tuple(tuple(int(position) for position in np.sort(part)) for part in parts)
    return Folds(split, k, seed, test, _leak_percent(slices, test))


def save_folds(path: str | os.PathLike, folds: Folds, slices: SliceSet) -> None:
    """Writes folds as JSON, one slice a line (file, index, group), under a temporary name, then renames it.

    Args:
        path: the file.
        folds: what to write.
        slices: the set they divide.

    Raises:
        DataError: the file cannot be written.
    """
    blocks = []
    for fold, part in enumerate(folds.test):
        cases = [
            {"file": slices.sources[i], "index": slices.indices[i], "group": slices.groups[i]} for i in part
        ]
        lines = ",\n".join("      " + json.dumps(case) for case in cases)
        blocks.append(f'    {{"fold": {fold}, "test": [\n{lines}\n    ]}}')
    head = {
        "format": _FORMAT,
        "split": folds.split,
        "k": folds.k,
        "seed": folds.seed,
        "leak_percent": round(folds.leak_percent, 4),
        "fingerprint": slices.fingerprint,
    }
    text = "".join(f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items())
    text = "{\n" + text + '  "folds": [\n' + ",\n".join(blocks) + "\n  ]\n}\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_folds(path: str | os.PathLike, slices: SliceSet) -> Folds:
    """Reads folds back and checks them against the set.

    Args:
        path: a file that `save_folds` wrote.
        slices: the set the folds must divide.

    Returns:
        The folds; the leak is computed anew.

    Raises:
        DataError: unreadable or damaged; made for other data or options; a slice that is missing, doubled,
            not in the set or in another group; an empty fold; a group in two folds under split `patient`.
    """
    path = Path(path)
    split, k, seed, parts = _read(path, slices.fingerprint)
    position = {case: i for i, case in enumerate(zip(slices.sources, slices.indices, strict=True))}
    seen: dict[int, int] = {}
    home: dict[str, int] = {}
    test = []
    for fold, part in enumerate(parts):
        if not part:
            raise DataError(f"{path}: expected test slices in every fold, fold {fold} has none")
        for file, index, group in part:
            case = f"{file} slice {index}"
            at = position.get((file, index))
            if at is None:
                raise DataError(f"{path}: expected slices of the set, fold {fold} has {case}")
            if at in seen:
                raise DataError(
                    f"{path}: expected every slice once, {case} is in fold {seen[at]} and fold {fold}"
                )
            if group != slices.groups[at]:
                raise DataError(f"{path}: expected group {slices.groups[at]} for {case}, got {group}")
            if split == "patient" and home.setdefault(group, fold) != fold:
                raise DataError(
                    f"{path}: expected whole groups under split patient, {group} is in fold {home[group]} "
                    f"and fold {fold}"
                )
            seen[at] = fold
        test.append(tuple(sorted(position[file, index] for file, index, _ in part)))
    if len(seen) != len(slices):
        at = next(i for i in range(len(slices)) if i not in seen)
        raise DataError(
            f"{path}: expected every slice once, {slices.sources[at]} slice {slices.indices[at]} "
            f"is in no fold ({len(slices) - len(seen)} missing)"
        )
    return Folds(split, k, seed, tuple(test), _leak_percent(slices, tuple(test)))


def read_cases(path: str | os.PathLike, fingerprint: str) -> list[list[tuple[str, int, str]]]:
    """Reads which slices each fold tests, without the data they come from.

    Args:
        path: a file that `save_folds` wrote.
        fingerprint: of the set the folds must divide.

    Returns:
        Per fold its test slices as (file, index, group), in rising order of their positions in the set.

    Raises:
        DataError: unreadable or damaged, or made for other data or options.
    """
    return _read(Path(path), fingerprint)[3]


def _read(path: Path, fingerprint: str) -> tuple[str, int, int, list[list[tuple[str, int, str]]]]:
    """split, k, seed and each fold's (file, index, group) of a folds file of this fingerprint."""
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: expected a folds file, got {reason}") from None
    head = _checked_head(text, path)
    if text["fingerprint"] != fingerprint:
        raise DataError(
            f"{path}: expected folds of this data (fingerprint {fingerprint[:12]}), got folds of "
            f"other data, groups or options ({str(text['fingerprint'])[:12]})"
        )
    return head


def _checked_head(text: object, path: Path) -> tuple[str, int, int, list[list[tuple[str, int, str]]]]:
    """Checks types and counts, so that everything after it can rely on them."""

    def need(condition: bool, expected: str, got: object) -> None:
        if not condition:
            raise DataError(f"{path}: expected {expected}, got {str(got)[:80]}")

    def whole(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    need(
        isinstance(text, dict) and text.get("format") == _FORMAT,
        f"a file of format {_FORMAT!r}",
        text.get("format") if isinstance(text, dict) else type(text).__name__,
    )
    split, k, seed, blocks = (text.get(name) for name in ("split", "k", "seed", "folds"))
    need(split in SPLITS, f"split {' or '.join(SPLITS)}", split)
    need(whole(k) and k >= 2, "k of 2 or more", k)
    need(whole(seed), "a whole number as seed", seed)
    need(
        isinstance(blocks, list) and len(blocks) == k,
        f"{k} folds",
        len(blocks) if isinstance(blocks, list) else blocks,
    )
    parts = []
    for fold, block in enumerate(blocks):
        cases = block.get("test") if isinstance(block, dict) and block.get("fold") == fold else None
        need(isinstance(cases, list), f"fold {fold} with a list of test slices", block)
        part = []
        for case in cases:
            good = (
                isinstance(case, dict)
                and isinstance(case.get("file"), str)
                and whole(case.get("index"))
                and isinstance(case.get("group"), str)
            )
            need(good, "slices as file, index, group", case)
            part.append((case["file"], case["index"], case["group"]))
        parts.append(part)
    need(isinstance(text.get("fingerprint"), str), "a fingerprint", text.get("fingerprint"))
    return split, k, seed, parts


def _leak_percent(slices: SliceSet, test: tuple[tuple[int, ...], ...]) -> float:
    fold_of = {position: fold for fold, part in enumerate(test) for position in part}
    at = {case: i for i, case in enumerate(zip(slices.sources, slices.indices, slices.groups, strict=True))}
    leaked = 0
    for (source, index, group), i in at.items():
        neighbours = (at.get((source, index + step, group)) for step in (-1, 1))
        leaked += any(n is not None and fold_of[n] != fold_of[i] for n in neighbours)
    return 100.0 * leaked / len(slices) if len(slices) else 0.0
