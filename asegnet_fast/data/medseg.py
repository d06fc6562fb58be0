"""Loads a CT set as axial slices ready for the network (the paper's two sets, nnU-Net's layout, pairs)."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asegnet_fast.data.cache import cache_key, cache_path, read_cache, write_cache
from asegnet_fast.data.errors import DataError
from asegnet_fast.data.grid import check_same_space
from asegnet_fast.data.groups import assign_groups
from asegnet_fast.data.intensity import (
    INTENSITIES,
    IntensityRange,
    ValueStatistics,
    intensity_range,
    resize_images,
    resize_masks,
)
from asegnet_fast.data.labels import MAX_LABELS, coded_labels, whole_labels
from asegnet_fast.data.layout import Pair, discover
from asegnet_fast.data.nifti import Volume, read_volume
from asegnet_fast.data.notes import Notes
from asegnet_fast.errors import InputError

LABELS = ("merge", "keep")
SELECT = ("lesion", "all")


# Comparing arrays with == has no single answer; equal sets have equal fingerprints.
@dataclass(frozen=True, eq=False)
class SliceSet:
    """Axial slices with their masks and where each came from.

    Attributes:
        images: uint8 [n, size, size], windowed to 0..255.
        masks: uint8 [n, size, size], classes 0..num_classes-1.
        sources: per slice, its image file relative to the root, posix.
        indices: per slice, its index along the axial axis of that file, as stored.
        groups: per slice, patient or file; folds split by patient never divide one.
        num_classes: 2 when labels are merged, else 1 + the number of labels.
        label_values: the file's labels behind class 1, 2, ... when kept apart; all merged ones otherwise.
        notes: one-line remarks the user must be told.
        fingerprint: sha256 over images, masks, sources, indices, groups.
    """

    images: np.ndarray
    masks: np.ndarray
    sources: tuple[str, ...]
    indices: tuple[int, ...]
    groups: tuple[str, ...]
    num_classes: int
    label_values: tuple[int, ...]
    notes: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.images)


def load_slices(
    root: str | os.PathLike,
    size: int = 256,
    intensity: str = "auto",
    labels: str = "merge",
    select: str = "lesion",
    groups: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> SliceSet:
    """Loads every image/mask pair of a folder as slices of one size (Budak et al. 2021, Experimental setup).

    Each file is decoded once. Slices are chosen on the original mask, then image (antialiased bilinear) and
    mask (nearest) are resized straight to size x size, whatever their aspect ratio.

    Args:
        root: a folder in one of the layouts of `layout.discover`.
        size: side of the slices in pixels, 1..4096.
        intensity: `auto`, `hu` or `raw`, see `intensity.intensity_range`; decided file by file.
        labels: `merge` makes every label above 0 class 1; `keep` numbers them 1, 2, ... in rising order.
        select: `lesion` keeps slices with any label above 0, `all` every slice.
        groups: CSV (file,first,last,patient) that says which patient a slice belongs to; default: its file.
        cache: folder for the decoded slices, or None. A changed file or option makes another cache file.
        progress: called as progress(files done, files in all, file just done).

    Returns:
        The slices in natural order of their files.

    Raises:
        ValueError: an option outside its range.
        DataError: a folder or file that cannot be used; the text is one line that names it.
    """
    _check_options(size, intensity, labels, select)
    root = Path(root)
    pairs, found_notes = discover(root)
    options = {"size": size, "intensity": intensity, "labels": labels, "select": select}
    key, stored, path = "", None, None
    remarks: list[str] = []
    if cache is not None:
        key = cache_key(root, [name for pair in pairs for name in (pair.image, pair.mask)], options)
        path = cache_path(cache, key)
        stored = read_cache(path, key)
        if isinstance(stored, str):
            remarks.append(f"{path.name}: the cache could not be used ({stored}); rebuilt")
            stored = None
    if stored is None:
        images, masks, record = _decode(root, pairs, size, intensity, labels, select, progress)
        if path is not None and (reason := write_cache(path, key, images, masks, record)):
            remarks.append(f"the cache was not written: {reason}")
    else:
        images, masks, record = stored
        if progress:
            progress(len(pairs), len(pairs), path.name)
    sources = tuple(record["sources"])
    indices = tuple(record["indices"])
    if groups is None:
        by_slice = sources
        if (root / "groups.csv").is_file():
            remarks.append("groups.csv: lies in the folder but was not asked for; every file is one group")
        if any(source.startswith("tr_im.") for source in sources):
            name = next(source for source in sources if source.startswith("tr_im."))
            remarks.append(
                f"{name}: names no patients; the whole file is one group (a groups CSV can split it)"
            )
    else:
        by_slice = assign_groups(groups, sources, indices, record["slice_counts"])
    return SliceSet(
        images=images,
        masks=masks,
        sources=sources,
        indices=indices,
        groups=by_slice,
        num_classes=2 if labels == "merge" else 1 + len(record["label_values"]),
        label_values=tuple(record["label_values"]),
        notes=tuple(found_notes + record["notes"] + remarks),
        fingerprint=_fingerprint(images, masks, sources, indices, by_slice),
    )


def load_image(
    path: str | os.PathLike, size: int = 256, intensity: str = "auto"
) -> tuple[Volume, np.ndarray, tuple[str, ...]]:
    """Loads one unlabelled image, prepared as `load_slices` prepares those of a set.

    To bring a mask predicted for these slices back: `resize_masks(mask, volume.to_slices().shape[1:])`, then
    `volume.from_slices`, then `write_volume` with `volume.affine`.

    Args:
        path: a NIfTI file.
        size: side of the slices in pixels, 1..4096.
        intensity: see `load_slices`.

    Returns:
        The volume; uint8 [n, size, size], every slice in stored order; one-line remarks for the user.

    Raises:
        ValueError: an option outside its range.
        DataError: the file cannot be used.
    """
    _check_options(size, intensity)
    notes = Notes()
    volume = read_volume(path)
    chosen = _inspect(volume, intensity, notes)
    return volume, resize_images(volume.to_slices(), size, chosen.low, chosen.high), tuple(notes.lines(1))


def _check_options(size: int, intensity: str, labels: str = "merge", select: str = "lesion") -> None:
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 4096:
        raise InputError(f"size: expected a whole number from 1 to 4096, got {size!r}")
    for name, value, allowed in (
        ("intensity", intensity, INTENSITIES),
        ("labels", labels, LABELS),
        ("select", select, SELECT),
    ):
        if value not in allowed:
            raise InputError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def _decode(
    root: Path, pairs: list[Pair], size: int, intensity: str, labels: str, select: str, progress
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Reads all pairs; returns images, masks and a JSON-able record of everything else."""
    notes = Notes()
    images, masks, file_labels = [], [], []
    sources: list[str] = []
    indices: list[int] = []
    slice_counts: dict[str, int] = {}
    dropped = vanished = 0
    for done, pair in enumerate(pairs, 1):
        image = read_volume(root / pair.image, pair.image)
        mask = read_volume(root / pair.mask, pair.mask)
        check_same_space(image, mask)
        values, coded = _coded_mask(mask, image, labels)
        slices = image.to_slices()
        values_range = _inspect(image, intensity, notes)
        coded = image.to_slices(coded)
        lesion = coded.any(axis=(1, 2))
        chosen = np.flatnonzero(lesion) if select == "lesion" else np.arange(len(slices))
        dropped += len(slices) - len(chosen)
        small = resize_masks(coded[chosen], size)
        vanished += int(np.count_nonzero(lesion[chosen] & ~small.any(axis=(1, 2))))
        images.append(resize_images(slices[chosen], size, values_range.low, values_range.high))
        masks.append(small)
        file_labels.append(values)
        sources += [pair.image] * len(chosen)
        indices += chosen.tolist()
        slice_counts[pair.image] = len(slices)
        if progress:
            progress(done, len(pairs), pair.image)
    all_labels = sorted(set().union(*file_labels))
    if not all_labels:
        raise DataError(f"{root}: expected a slice with a label above 0, got none in {len(pairs)} masks")
    if labels == "keep":
        if len(all_labels) > MAX_LABELS:
            raise DataError(
                f"{root}: expected at most {MAX_LABELS} labels to keep apart, got {len(all_labels)}"
            )
        masks = [
            _renumbered(part, values, all_labels) for part, values in zip(masks, file_labels, strict=True)
        ]
    texts = notes.lines(len(pairs))
    if dropped:
        texts.append(f"{dropped} of {dropped + len(indices)} slices have no label above 0; left out")
    if vanished:
        texts.append(
            f"{vanished} of {len(indices)} slices lose their whole lesion when resized to "
            f"{size} x {size}; kept without one"
        )
    record = {
        "sources": sources,
        "indices": indices,
        "slice_counts": slice_counts,
        "label_values": all_labels,
        "notes": texts,
    }
    return np.concatenate(images), np.concatenate(masks), record


def _inspect(image: Volume, intensity: str, notes: Notes) -> IntensityRange:
    """Chooses the intensity range of an image and notes what is odd about the file."""
    for remark in image.remarks():
        notes.add(remark, image.name)
    chosen = intensity_range(ValueStatistics().add(image.data), image.name, intensity)
    if chosen.remark:
        notes.add(chosen.remark, image.name, (chosen.smallest, chosen.largest))
    return chosen


def _coded_mask(mask: Volume, image: Volume, labels: str) -> tuple[list[int], np.ndarray]:
    """Checks a mask; returns its labels, and bytes: 1 for any label when merged, else 1 + its position."""
    data = whole_labels(mask, lambda: _swapped_hint(image))
    found = np.unique(data)
    if _looks_like_mask(image) and len(found) > len(np.unique(image.data)):
        raise DataError(
            f"{mask.name}: expected labels, got {len(found)} different values" + _swapped_hint(image)
        )
    values = [int(value) for value in found if value > 0]
    if labels == "merge":
        return values, (data > 0).view(np.uint8)
    return values, coded_labels(data, values, mask.name)


def _looks_like_mask(image: Volume) -> bool:
    """Few different, whole values from 0 on."""
    values = np.unique(image.data[:: max(1, len(image.data) // 64)])
    return len(values) < 64 and values[0] >= 0 and bool((values == np.rint(values)).all())


def _swapped_hint(image: Volume) -> str:
    return f"; are it and {image.name} swapped?" if _looks_like_mask(image) else ""


def _renumbered(part: np.ndarray, values: list[int], all_labels: list[int]) -> np.ndarray:
    return np.array([0, *(all_labels.index(value) + 1 for value in values)], np.uint8)[part]


def _fingerprint(images, masks, sources, indices, groups) -> str:
    digest = hashlib.sha256()
    for array in (images, masks):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    for case in zip(sources, indices, groups, strict=True):
        digest.update(repr(case).encode())
    return digest.hexdigest()
