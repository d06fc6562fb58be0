"""One volume, top to bottom: read twice in pieces, predicted slice by slice, written as it comes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from asegnet_fast.data.errors import DataError
from asegnet_fast.data.grid import check_same_space
from asegnet_fast.data.header import NiftiFile, open_nifti
from asegnet_fast.data.intensity import (
    IntensityRange,
    ValueStatistics,
    intensity_range,
    resize_images,
    window,
)
from asegnet_fast.data.stream import SliceWriter, read_slices, write_slices
from asegnet_fast.environment import environment
from asegnet_fast.files import sha256_of, write_json
from asegnet_fast.inference.ensemble import Ensemble, Prediction
from asegnet_fast.inference.jobs import Job, Outputs
from asegnet_fast.inference.measures import CONVENTIONS, Measures

FORMAT = "asegnet_fast prediction 1"
_PLANES = 16
_SHOWN = 8


@dataclass(frozen=True)
class Shown:
    """A slice for the picture: uint8 image and labels [rows, columns], its index, its lesion pixels."""

    image: np.ndarray
    labels: np.ndarray
    index: int
    area: int


def predict_volume(
    ensemble: Ensemble,
    job: Job,
    outputs: Outputs,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
    draw: Callable[[Path, list[Shown], tuple[float, float], str], None] | None = None,
) -> dict[str, Any]:
    """Predicts a volume and writes everything that `outputs` names.

    Memory is bounded by `batch_size` slices, however many the volume has. The report is written last; when anything
    goes wrong before, no file is left or replaced.

    Args:
        ensemble: what predicts.
        job: the volume.
        outputs: where everything goes.
        batch_size: slices that go through a network at a time.
        progress: called as progress(slices done, slices in all).
        draw: draws `outputs.picture`: called as draw(path, slices, millimetres between rows and columns, title).

    Returns:
        The content of the report.

    Raises:
        DataError: the volume or its lung mask cannot be used.
        OSError: an output cannot be written.
    """
    file = open_nifti(job.image)
    lung = open_nifti(job.lung) if job.lung is not None else None
    if lung is not None:
        check_same_space(file.grid, lung.grid)
    values = ValueStatistics()
    for _, part in file.chunks(_PLANES):
        values.add(part)
    chosen = intensity_range(values, file.grid.name, ensemble.intensity)
    measures = Measures(ensemble.values, lung is not None)
    with contextlib.ExitStack() as stack:
        writers = _Writers(stack, file, outputs, ensemble)
        shown: dict[int, Shown] = {}
        done, total = 0, file.grid.slices_shape[0]
        for slices, lungs in _batches(file, lung, batch_size, outputs.mask.parent):
            images = resize_images(slices, ensemble.size, chosen.low, chosen.high)
            predictions = ensemble(images, slices.shape[1:], attention=bool(outputs.attention))
            for k, prediction in enumerate(predictions):
                labels = prediction.labels.cpu().numpy()
                area = measures.add(labels, None if lungs is None else lungs[k])
                writers.write(labels, prediction)
                # From each eighth of the volume, the slice with the most lesion.
                place = (done + k) * _SHOWN // total
                if outputs.picture and (place not in shown or area > shown[place].area):
                    image = np.rint(window(slices[k : k + 1], chosen.low, chosen.high)[0]).astype(np.uint8)
                    shown[place] = Shown(image, labels, done + k, area)
            done += len(slices)
            if progress:
                progress(done, total)
        if outputs.picture and draw:
            draw(outputs.picture, list(shown.values()), file.grid.slice_spacing, job.image.name)
    report = _report(ensemble, job, outputs, file, chosen, measures, writers)
    write_json(outputs.report, report)
    return report


def _batches(
    file: NiftiFile, lung: NiftiFile | None, count: int, folder: Path
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The volume's slices, and the lung's as bool or None."""
    images = read_slices(file, count, folder)
    if lung is None:
        for slices in images:
            yield slices, None
        return
    for slices, inside in zip(images, read_slices(lung, count, folder), strict=True):
        if not np.isfinite(inside).all():
            raise DataError(f"{lung.grid.name}: expected labels, got values that are NaN or infinite")
        yield slices, inside > 0


class _Writers:
    """The NIfTI files of a prediction, each open for the slices to come."""

    def __init__(
        self, stack: contextlib.ExitStack, file: NiftiFile, outputs: Outputs, ensemble: Ensemble
    ) -> None:
        def opened(path: Path, dtype: np.dtype | type, what: str) -> SliceWriter:
            return stack.enter_context(write_slices(path, file, dtype, f"asegnet-fast: {what}"))

        # The widest label decides; 255 is the most that most have.
        self._values = np.array((0, *ensemble.values), np.min_scalar_type(max(ensemble.values)))
        self.mask = opened(outputs.mask, self._values.dtype, "labels")
        self.probabilities = [
            opened(path, np.float32, f"probability of label {value}")
            for path, value in zip(outputs.probabilities, ensemble.values, strict=False)
        ]
        self.attention = [
            opened(path, np.float32, f"attention of gate {k}") for k, path in enumerate(outputs.attention, 1)
        ]

    def write(self, labels: np.ndarray, prediction: Prediction) -> None:
        """Takes the next slice."""
        self.mask.write(self._values[labels][None])
        for writers, maps in (
            (self.probabilities, prediction.probabilities[1:]),
            (self.attention, prediction.attention),
        ):
            if writers:
                for writer, part in zip(writers, maps.cpu().numpy(), strict=True):
                    writer.write(part[None])


def _report(
    ensemble: Ensemble,
    job: Job,
    outputs: Outputs,
    file: NiftiFile,
    chosen: IntensityRange,
    measures: Measures,
    writers: _Writers,
) -> dict[str, Any]:
    grid = file.grid
    remarks = grid.remarks()
    if chosen.remark:
        remarks.append(f"values {chosen.smallest:g} to {chosen.largest:g} {chosen.remark}")
    for member in ensemble.members:
        if isinstance(member.epochs, int) and member.epoch < member.epochs:
            remarks.append(f"{member.path}: trained for {member.epoch} of {member.epochs} epochs")
    folder = outputs.report.parent

    def written(path: Path, sha256: str) -> dict[str, str]:
        return {"file": path.relative_to(folder).as_posix(), "sha256": sha256}

    maps = zip(outputs.probabilities, writers.probabilities, strict=True)
    gates = zip(outputs.attention, writers.attention, strict=True)
    return {
        "format": FORMAT,
        "input": {
            "file": str(job.image),
            "sha256": sha256_of(job.image),
            "shape": list(grid.shape),
            "axes": "".join(nibabel.orientations.ornt2axcodes(grid.orientation)),
            "voxel_mm": [round(float(s) * grid.unit_mm, 6) for s in nibabel.affines.voxel_sizes(grid.affine)],
            "affine_problem": grid.affine_problem,
        },
        "lung_mask": {"file": str(job.lung), "sha256": sha256_of(job.lung)} if job.lung else None,
        "result": measures.to_json(grid.voxel_ml),
        "outputs": {
            "mask": written(outputs.mask, writers.mask.sha256),
            "probabilities": [written(path, writer.sha256) for path, writer in maps],
            "attention": [written(path, writer.sha256) for path, writer in gates],
            "picture": written(outputs.picture, sha256_of(outputs.picture)) if outputs.picture else None,
        },
        "checkpoints": [member.to_json() for member in ensemble.members],
        "settings": {
            "size": ensemble.size,
            "intensity": ensemble.intensity,
            "black": chosen.low,
            "white": chosen.high,
            "precision": ensemble.precision,
        },
        "notes": remarks,
        "conventions": CONVENTIONS,
        "environment": environment(str(ensemble.device)),
    }
