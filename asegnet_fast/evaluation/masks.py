"""Predicted NIfTI masks of any tool against truth masks: matched by name, brought to one grid, one case at a time."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from nibabel import orientations

from asegnet_fast.data import DataError, Volume, open_nifti, read_volume
from asegnet_fast.data.grid import Grid, check_same_space
from asegnet_fast.data.groups import read_groups
from asegnet_fast.data.header import nifti_stem
from asegnet_fast.data.labels import coded_labels, whole_labels
from asegnet_fast.data.notes import Notes
from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.cases import Case, measure_case
from asegnet_fast.evaluation.surface import TOLERANCE_MM

Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True)
class MaskPair:
    """A truth file and the file with its prediction."""

    name: str
    truth: Path
    prediction: Path


def match_masks(truth: Path, predictions: Path, option: str = "--predictions") -> list[MaskPair]:
    """Find the prediction of every truth mask.

    Args:
        truth, predictions: two NIfTI files, or two folders whose files have the same names (up to `.nii` or
            `.nii.gz`). Other files are ignored, predictions without a truth are refused.
        option: that gave the predictions, for messages.

    Returns:
        The pairs in the order of their names.

    Raises:
        ValueError: nothing there, a file without a partner, one name twice.
    """
    truth, predictions = Path(truth), Path(predictions)
    for given, path in (("--truth", truth), (option, predictions)):
        if not path.exists():
            raise InputError(f"{given}: expected a NIfTI file or a folder of them, got nothing at {path}")
    if truth.is_dir() != predictions.is_dir():
        kinds = ["a folder" if path.is_dir() else "a file" for path in (truth, predictions)]
        raise InputError(f"{option}: expected {kinds[0]} as --truth is, got {kinds[1]} ({predictions})")
    if not truth.is_dir():
        return [MaskPair(nifti_stem(truth.name) or truth.name, truth, predictions)]
    wanted, there = _masks("--truth", truth), _masks(option, predictions)
    for here, other, what, folder in (
        (wanted, there, "prediction", predictions),
        (there, wanted, "truth", truth),
    ):
        if alone := sorted(here.keys() - other.keys()):
            more = f" (and {len(alone) - 1} more like it)" if len(alone) > 1 else ""
            raise InputError(f"{here[alone[0]]}: expected its {what} in {folder}, found none{more}")
    return [MaskPair(name, wanted[name], there[name]) for name in sorted(wanted)]


def measure_masks(
    pairs: Sequence[MaskPair],
    labels: str = "merge",
    select: str = "all",
    groups: Path | None = None,
    tolerance: float = TOLERANCE_MM,
    progress: Progress | None = None,
    notes: Notes | None = None,
) -> Iterator[Case]:
    """Measure pairs of masks, one pair in memory at a time.

    Args:
        pairs: of `match_masks`.
        labels: `merge` makes every label above 0 one class, `keep` measures each label by itself.
        select: `all` slices, or those with a `lesion`: a label above 0 in the truth.
        groups: CSV file,first,last,patient (`file` is the truth's file name): which slices are one patient's. A
            file's slices of one patient are a case; by default every file is one.
        tolerance: of surface_dice, in millimetres.
        progress: called as progress(cases done, cases in all, case just done).
        notes: receives what the user must be told.

    Raises:
        DataError: a file that cannot be used, or two grids that are not one.
    """
    patients = patients_of(groups, {pair.truth.name: pair.truth for pair in pairs}) if groups else {}
    for done, pair in enumerate(pairs, 1):
        truth = read_volume(pair.truth)
        prediction = aligned(read_volume(pair.prediction), truth)
        if notes is not None:
            note_grid(truth, notes)
        values, coded = code_both(prediction, truth, labels)
        chosen = range(truth.slices_shape[0])
        if select == "lesion":
            chosen = np.flatnonzero(truth.to_slices(coded[1]).any(axis=(1, 2))).tolist()
        for name, unit, indices in parts(pair.name, patients.get(pair.truth.name), chosen):
            yield measure_case(
                *coded, millimetres(truth), truth.axial_axis, values, name, unit, indices, tolerance=tolerance
            )
        if progress:
            progress(done, len(pairs), pair.name)


def aligned(prediction: Volume, truth: Volume) -> Volume:
    """Turn a prediction's axes to the truth's where only their order and direction differ.

    Raises:
        DataError: the grids differ in shape or, where both affines are sane, in place.
    """
    if not (truth.affine_problem or prediction.affine_problem):
        turn = orientations.ornt_transform(prediction.orientation, truth.orientation)
        data = orientations.apply_orientation(prediction.data, turn)
        prediction = dataclasses.replace(
            prediction,
            data=data,
            shape=data.shape,
            affine=prediction.affine @ orientations.inv_ornt_aff(turn, prediction.shape),
            orientation=truth.orientation,
        )
    check_same_space(truth, prediction)
    return prediction


def code_both(
    prediction: Volume, truth: Volume, labels: str
) -> tuple[tuple[int, ...], tuple[np.ndarray, np.ndarray]]:
    """Both masks as bytes over the labels found in either.

    Returns:
        (label values, (prediction, truth) uint8 [X, Y, Z]); (1,) and 0 or 1 where labels are merged.

    Raises:
        DataError: values that are no labels, or too many.
    """
    data = [whole_labels(mask) for mask in (prediction, truth)]
    if labels == "merge":
        return (1,), tuple((mask > 0).view(np.uint8) for mask in data)
    found = sorted({int(value) for mask in data for value in np.unique(mask) if value > 0})
    coded = (coded_labels(d, found, v.name) for d, v in zip(data, (prediction, truth), strict=True))
    return tuple(found), tuple(coded)


def parts(
    name: str, patients: Sequence[str] | None, indices: Sequence[int]
) -> Iterator[tuple[str, str, list[int]]]:
    """Part a file's slices by patient.

    Args:
        name: of the file.
        patients: of every slice of the file, "" for none; None where no patients are known.
        indices: the slices to part.

    Returns:
        (name of the case, its unit, its slices); a slice without a patient is left out.
    """
    if patients is None:
        if len(indices):
            yield name, name, list(indices)
        return
    found = list(dict.fromkeys(patients[index] for index in indices if patients[index]))
    several = len({patient for patient in patients if patient}) > 1
    for patient in found:
        case = f"{name} [{patient}]" if several else name
        yield case, patient, [index for index in indices if patients[index] == patient]


def patients_of(groups: Path, files: dict[str, Path]) -> dict[str, list[str]]:
    """The patient of every slice of every file, from a groups CSV.

    Args:
        groups: the CSV.
        files: how the CSV names each file, and where it lies; their slices are counted from their headers.

    Raises:
        DataError: as `read_groups`, or a file without a patient.
    """
    counts = {name: open_nifti(path).grid.slices_shape[0] for name, path in files.items()}
    ranges = read_groups(groups, counts)
    patients: dict[str, list[str]] = {}
    for name, count in counts.items():
        if name not in ranges:
            raise DataError(f"{groups}: expected a patient for every file, got none for {name}")
        patients[name] = [""] * count
        for part in ranges[name]:
            patients[name][part.first : part.last + 1] = [part.patient] * (part.last + 1 - part.first)
    return patients


def millimetres(grid: Grid) -> np.ndarray:
    """The affine [4, 4] from voxel index to millimetres, whatever the file's unit of length."""
    return np.diag([grid.unit_mm] * 3 + [1.0]) @ grid.affine


def note_grid(volume: Grid, notes: Notes) -> None:
    """Say what makes millimetres doubtful."""
    if volume.affine_problem:
        notes.add(f"the affine {volume.affine_problem}; mm and ml are what it says", volume.name)


def _masks(option: str, folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for name in sorted(os.listdir(folder)):
        stem = nifti_stem(name)
        if stem is None:
            continue
        if stem in files:
            raise InputError(f"{folder / name}: expected one file per name, got also {files[stem].name}")
        files[stem] = folder / name
    if not files:
        raise InputError(f"{option}: expected NIfTI files (.nii, .nii.gz), got none in {folder}")
    return files
