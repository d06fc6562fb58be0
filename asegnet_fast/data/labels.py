"""The label values of a mask, whatever number type its file has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from asegnet_fast.data.errors import DataError
from asegnet_fast.data.nifti import Volume

MAX_LABELS = 255


def whole_labels(mask: Volume, hint: Callable[[], str] = str) -> np.ndarray:
    """The values of a mask, once they are known to be labels.

    Args:
        mask: as read.
        hint: makes an end for the error's text.

    Returns:
        Its data, [X, Y, Z], every value whole and 0 or more; floats within 1e-4 of a whole number are rounded.

    Raises:
        DataError: a value is fractional, negative, NaN or infinite.
    """
    data = mask.data
    if data.dtype.kind == "f":
        if not np.isfinite(data).all():
            raise DataError(f"{mask.name}: expected whole labels from 0, got values that are NaN or infinite")
        whole = np.rint(data)
        # Scaled labels may miss a whole number by rounding.
        fractional = np.abs(data - whole) > 1e-4
        if fractional.any():
            raise DataError(
                f"{mask.name}: expected whole labels from 0, got {float(data[fractional][0]):g}{hint()}"
            )
        data = whole
    if data.min() < 0:
        raise DataError(f"{mask.name}: expected whole labels from 0, got {data.min():g}{hint()}")
    return data


def coded_labels(data: np.ndarray, values: Sequence[int], name: str) -> np.ndarray:
    """Labels as bytes: 0, and 1 + the label's position in `values`.

    Args:
        data: whole numbers from 0, all of them 0 or in `values`.
        values: rising labels, at most 255.
        name: how the error calls the file.

    Raises:
        DataError: more than 255 labels.
    """
    if len(values) > MAX_LABELS:
        raise DataError(f"{name}: expected at most {MAX_LABELS} labels to keep apart, got {len(values)}")
    return np.searchsorted(np.array([0, *values]), data).astype(np.uint8)
