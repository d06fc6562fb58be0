"""Volumes read and written slice by slice: any orientation, any kind of file, on the input's own grid."""

import gzip
import hashlib
import itertools

import nibabel
import numpy as np
import pytest

from asegnet_fast.data import DataError, open_nifti, read_slices, read_volume, write_slices
from asegnet_fast.data import stream as stream_module
from asegnet_fast.data.intensity import ValueStatistics

from .data_sets import SANE, hu_volume, write


def slices_of(path, count=2) -> np.ndarray:
    return np.concatenate(list(read_slices(open_nifti(path), count, path.parent)))


def copied(path, out, dtype=np.int16, count=2):
    """A file on the grid of another, with its values."""
    file = open_nifti(path)
    with write_slices(out, file, dtype, "copy") as writer:
        for part in read_slices(file, count, path.parent):
            writer.write(part)
    return writer


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)], ids=str)
def test_slices_in_pieces_are_those_of_the_whole_and_go_back(tmp_path, axes, signs, suffix):
    affine = SANE[:, [*axes, 3]] @ np.diag([*signs, 1])
    data = hu_volume((7, 18, 5))
    path = write(tmp_path / f"a{suffix}", data, affine)
    assert np.array_equal(slices_of(path), read_volume(path).to_slices())
    copied(path, tmp_path / f"b{suffix}")
    back = nibabel.load(tmp_path / f"b{suffix}")
    assert np.array_equal(np.asarray(back.dataobj), data)
    assert {p.name for p in tmp_path.iterdir()} == {f"a{suffix}", f"b{suffix}"}


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("shape", [(9, 8, 4), (9, 8), (9, 8, 4, 1)], ids=str)
def test_the_grid_is_kept_and_the_values_fields_are_not(tmp_path, kind, endianness, shape):
    data = hu_volume((9, 8, 4)).reshape(-1)[: int(np.prod(shape))].reshape(shape)
    oblique = SANE @ nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.1, 0.2, 0.15), [1, 2, 3])
    image = kind(data, oblique, kind.header_class(endianness=endianness))
    image.set_sform(oblique, code="talairach")
    image.set_qform(SANE, code="scanner")
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(2.0, 5.0)
    image.header["descrip"], image.header["intent_name"] = b"Jane Doe", b"Doe"
    image.header["cal_max"] = 400
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nibabel.save(image, tmp_path / "a.nii.gz")
    copied(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", np.float32, count=3)
    a, b = nibabel.load(tmp_path / "a.nii.gz"), nibabel.load(tmp_path / "b.nii.gz")
    assert type(b) is kind and b.shape == shape
    assert np.array_equal(a.affine, b.affine)
    kept = ("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d")
    kept += ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")
    for name in kept:
        assert np.array_equal(a.header[name], b.header[name]), name
    assert np.array_equal(a.get_fdata(), b.get_fdata())
    assert b.header["cal_max"] == 0
    assert b"Doe" not in gzip.decompress((tmp_path / "b.nii.gz").read_bytes())


def test_the_same_slices_make_the_same_bytes_and_the_checksum_is_theirs(tmp_path):
    path = write(tmp_path / "a.nii", hu_volume(), SANE[:, [2, 0, 1, 3]])
    first = copied(path, tmp_path / "b.nii.gz", count=1)
    second = copied(path, tmp_path / "c.nii.gz", count=6)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()
    assert first.sha256 == second.sha256 == hashlib.sha256((tmp_path / "b.nii.gz").read_bytes()).hexdigest()


def test_an_interrupted_file_is_not_left_behind(tmp_path):
    path = write(tmp_path / "a.nii", hu_volume())
    (tmp_path / "b.nii.gz").write_bytes(b"old")
    with (
        pytest.raises(KeyboardInterrupt),
        write_slices(tmp_path / "b.nii.gz", open_nifti(path), np.uint8, "x"),
    ):
        raise KeyboardInterrupt
    assert {p.name for p in tmp_path.iterdir()} == {"a.nii", "b.nii.gz"}
    assert (tmp_path / "b.nii.gz").read_bytes() == b"old"


def test_slices_that_are_missing_are_a_fault(tmp_path):
    file = open_nifti(write(tmp_path / "a.nii", hu_volume()))
    with (
        pytest.raises(AssertionError, match="1 of 6 slices"),
        write_slices(tmp_path / "b.nii", file, np.uint8, "x") as writer,
    ):
        writer.write(np.zeros((1, 36, 40), np.uint8))
    assert not (tmp_path / "b.nii").exists()


def test_a_plane_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.nii", hu_volume())
    monkeypatch.setattr(stream_module, "MAX_PLANE", 40 * 36 - 1)
    with pytest.raises(DataError, match="expected slices of at most 1,439 pixels, got 36 x 40"):
        slices_of(path)


def test_a_picture_of_two_dimensions_is_one_slice(tmp_path):
    path = write(tmp_path / "a.nii", hu_volume()[:, :, 0])
    volume = read_volume(path)
    assert volume.to_slices().shape == (1, 36, 40) and volume.affine_problem is None
    path = write(tmp_path / "b.nii", hu_volume()[:, :, 0], SANE[:, [2, 0, 1, 3]])
    volume = read_volume(path)
    assert volume.to_slices().shape == (1, 36, 40) and "not axial" in volume.affine_problem


@pytest.mark.parametrize(("unit", "expected"), [("mm", 1.0), ("meter", 1e9), ("micron", 1e-9), (None, 1.0)])
def test_volume_of_a_voxel(tmp_path, unit, expected):
    image = nibabel.Nifti1Image(hu_volume(), SANE)
    if unit:
        image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    assert open_nifti(tmp_path / "a.nii").grid.voxel_ml == pytest.approx(0.8 * 0.8 * 5 / 1000 * expected)


def test_an_affine_whose_axes_coincide_is_unusable(tmp_path):
    affine = SANE.copy()
    affine[:3, 1] = affine[:3, 0]
    image = nibabel.Nifti1Image(hu_volume(), None)
    image.set_sform(affine, code=1)
    nibabel.save(image, tmp_path / "a.nii")
    grid = open_nifti(tmp_path / "a.nii").grid
    assert grid.affine_problem == "cannot be inverted" and grid.voxel_ml is None
    assert np.array_equal(grid.affine, np.eye(4))


def test_statistics_in_pieces_are_those_of_the_whole():
    data = hu_volume()
    parts = ValueStatistics()
    for k in range(data.shape[2]):
        parts.add(data[:, :, k])
    assert parts == ValueStatistics().add(data)
