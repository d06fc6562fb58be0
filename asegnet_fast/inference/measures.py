"""What a report says of a predicted volume, gathered slice by slice."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

#: What the numbers of a report mean; kept in every report.
CONVENTIONS = {
    "volume": "voxels times the voxel volume, the determinant of the affine in the header's unit of length",
    "lesion": "all labels together",
    "slices": "axial slices, counted from 0 along the file's own axis; touched: at least one lesion voxel",
    "components": "lesion voxels joined by faces (6 neighbours)",
    "lung": "voxels above 0 in the lung mask; lesion_share is the lesion inside it over its volume",
    "probabilities": "mean over the checkpoints of softmax, at the network's size, then bilinear to the slice's own; "
    "the label is the largest there",
    "null": "not defined: no usable affine, or an empty lung",
}


class Measures:
    """Counts of a volume's lesions over its axial slices, which come in order.

    Args:
        values: labels of class 1, 2, ...
        with_lung: whether a lung mask comes with each slice.
    """

    def __init__(self, values: tuple[int, ...], with_lung: bool) -> None:
        self._values = values
        self._voxels = np.zeros(len(values) + 1, np.int64)
        self._touched: list[int] = []
        self._slices = 0
        self._lung = np.zeros(2, np.int64) if with_lung else None  # voxels, lesion voxels among them
        self._components = Components()

    def add(self, labels: np.ndarray, lung: np.ndarray | None) -> int:
        """Takes the next slice.

        Args:
            labels: uint8 [rows, columns], classes.
            lung: bool [rows, columns], or None.

        Returns:
            Its lesion pixels.
        """
        counts = np.bincount(labels.ravel(), minlength=len(self._voxels))
        lesion = labels > 0
        area = int(counts[1:].sum())
        self._voxels += counts
        if area:
            self._touched.append(self._slices)
        if self._lung is not None:
            self._lung += (np.count_nonzero(lung), np.count_nonzero(lung & lesion))
        self._components.add(lesion)
        self._slices += 1
        return area

    def to_json(self, voxel_ml: float | None) -> dict[str, Any]:
        """The part of the report that is about lesions.

        Args:
            voxel_ml: millilitres of a voxel, or None.
        """

        def ml(voxels: int) -> float | None:
            return None if voxel_ml is None else round(int(voxels) * voxel_ml, 6)

        lesion = int(self._voxels[1:].sum())
        sizes = self._components.sizes()
        result: dict[str, Any] = {
            "voxel_ml": None if voxel_ml is None else float(f"{voxel_ml:.9g}"),
            "lesion": {"voxels": lesion, "ml": ml(lesion)},
            "labels": [
                {"value": value, "voxels": int(count), "ml": ml(count)}
                for value, count in zip(self._values, self._voxels[1:], strict=True)
            ],
            "slices": {
                "total": self._slices,
                "touched": len(self._touched),
                "first": self._touched[0] if self._touched else None,
                "last": self._touched[-1] if self._touched else None,
            },
            "components": {"count": len(sizes), "largest_ml": ml(max(sizes, default=0))},
        }
        if self._lung is not None:
            lung, inside = (int(count) for count in self._lung)
            result["lung"] = {
                "voxels": lung,
                "ml": ml(lung),
                "lesion_ml": ml(inside),
                "lesion_share": round(inside / lung, 6) if lung else None,
                "lesion_outside_ml": ml(lesion - inside),
            }
        return result


class Components:
    """Three-dimensional connected components (6 neighbours) of a mask whose slices come in order.

    Only two slices are in memory: each slice is labelled by itself, and parts that touch across slices are joined.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[int] = []
        self._before: np.ndarray | None = None

    def add(self, mask: np.ndarray) -> None:
        """Takes the next slice, bool [rows, columns]."""
        if not mask.any():
            self._before = None
            return
        parts, count = ndimage.label(mask, output=np.int32)
        base = len(self._parent)
        self._parent += range(base, base + count)
        self._size += np.bincount(parts.ravel(), minlength=count + 1)[1:].tolist()
        parts = np.where(mask, parts + (base - 1), -1)
        if self._before is not None:
            touching = (parts >= 0) & (self._before >= 0)
            # Numbers instead of pairs, which sort many times faster.
            width = len(self._parent)
            pairs = np.unique(parts[touching].astype(np.int64) * width + self._before[touching])
            for pair in pairs.tolist():
                self._join(*divmod(pair, width))
        self._before = parts

    def sizes(self) -> list[int]:
        """Voxels of each component."""
        return [size for index, size in enumerate(self._size) if self._parent[index] == index]

    def _root(self, part: int) -> int:
        while self._parent[part] != part:
            self._parent[part] = self._parent[self._parent[part]]
            part = self._parent[part]
        return part

    def _join(self, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        if one != other:
            self._parent[one] = other
            self._size[other] += self._size[one]
