"""The labels of single slices, kept apart also where a run merged them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asegnet_fast.data.errors import DataError
from asegnet_fast.data.intensity import resize_masks
from asegnet_fast.data.labels import coded_labels, whole_labels
from asegnet_fast.data.layout import discover
from asegnet_fast.data.nifti import read_volume


def load_labels(root: str | os.PathLike, cases: Sequence[tuple[str, int]], size: int) -> np.ndarray:
    """Loads the masks of some slices with the file's own label values; only their files are read.

    Args:
        root: a folder that `load_slices` reads.
        cases: image file relative to the root and index of each slice, as in `SliceSet`.
        size: side of the slices in pixels.

    Returns:
        int64 [len(cases), size, size], the values in the files.

    Raises:
        DataError: a file that is not there or cannot be used, or a slice it does not have.
    """
    root = Path(root)
    partner = {pair.image: pair.mask for pair in discover(root)[0]}
    masks = np.zeros((len(cases), size, size), np.int64)
    for file in dict.fromkeys(file for file, _ in cases):
        if file not in partner:
            raise DataError(f"{file}: expected an image of {root}, got none of this name")
        image = read_volume(root / file, file)
        mask = read_volume(root / partner[file], partner[file])
        data = whole_labels(mask)
        values = [int(value) for value in np.unique(data) if value > 0]
        coded = image.to_slices(coded_labels(data, values, mask.name))
        for place, (name, index) in enumerate(cases):
            if name != file:
                continue
            if not 0 <= index < len(coded):
                raise DataError(f"{file}: expected slices up to {index}, got {len(coded)}")
            masks[place] = np.array([0, *values])[resize_masks(coded[index : index + 1], size)[0]]
    return masks
