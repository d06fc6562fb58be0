"""One volume through the networks and back onto its own grid."""

import gzip
import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from asegnet_fast.checkpoint import load_network, normalised, read_checkpoint
from asegnet_fast.data import DataError, load_image, write_volume
from asegnet_fast.inference import load_ensemble
from asegnet_fast.inference.measures import Components
from tests.data_sets import SANE, write
from tests.predictions import checkpoint, one, predict, smooth_volume, values, volume


def plainly(paths, image: Path) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Labels, probability and attention in the stored axes: the whole volume at once, by torch alone."""
    loaded, images, _ = load_image(image, size=32)
    shape = loaded.to_slices().shape[1:]
    probabilities, attention = 0, [0, 0]
    for path in paths:
        content = read_checkpoint(path)
        with torch.no_grad():
            logits, alphas = load_network(content)(
                normalised(torch.from_numpy(images), content["normalisation"]), return_attention=True
            )
        probabilities = probabilities + logits.softmax(1) / len(paths)
        attention = [a + b / len(paths) for a, b in zip(attention, alphas, strict=True)]

    def back(maps):
        return F.interpolate(maps, shape, mode="bilinear", align_corners=False, antialias=True)

    large = back(probabilities)
    stored = [large.argmax(1), large[:, 1], *(back(alpha)[:, 0] for alpha in attention)]
    labels, probability, *alphas = (loaded.from_slices(part.numpy()) for part in stored)
    return labels, probability, alphas


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("shape", [(40, 36, 6), (24, 30, 5)], ids=["smaller", "larger"])
def test_a_prediction_is_that_of_the_networks_on_the_whole_volume(tmp_path, count, shape):
    paths = [checkpoint(tmp_path / f"{k}.pt", seed=k) for k in range(count)]
    image = volume(tmp_path / "ct.nii.gz", shape=shape)
    report = predict(load_ensemble(paths), image, tmp_path / "out", attention=True)
    labels, probability, alphas = plainly(paths, image)
    mask = values(tmp_path / "out" / "ct.nii.gz")
    assert mask.dtype == np.uint8 and 0.01 < mask.mean() < 0.99
    assert np.array_equal(mask, labels)
    got = values(tmp_path / "out" / "probabilities" / "ct.nii.gz")
    assert got.dtype == np.float32 and np.allclose(got, probability, atol=1e-6)
    for k, alpha in enumerate(alphas, 1):
        assert np.allclose(values(tmp_path / "out" / "attention" / f"ct_gate{k}.nii.gz"), alpha, atol=1e-6)
    assert len(report["checkpoints"]) == count


@pytest.mark.parametrize("signs", [(-1, 1, 1), (1, -1, -1)], ids=str)
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))), ids=str)
def test_a_turned_volume_has_the_same_mask_voxel_for_voxel(tmp_path, axes, signs):
    ensemble = one(tmp_path)
    data = smooth_volume()
    oblique = SANE.copy()
    oblique[:3, :3] = nibabel.eulerangles.euler2mat(0.1, 0.15, 0.2) @ oblique[:3, :3]
    write_volume(tmp_path / "a.nii.gz", data, oblique)
    predict(ensemble, tmp_path / "a.nii.gz", tmp_path / "out")

    turn = np.array(list(zip(axes, signs, strict=True)))
    turned = nibabel.Nifti1Image(data, oblique).as_reoriented(turn)
    write_volume(tmp_path / "b.nii", np.asarray(turned.dataobj), turned.affine)
    predict(ensemble, tmp_path / "b.nii", tmp_path / "out")
    masks = [nibabel.load(tmp_path / "out" / f"{name}.nii.gz") for name in "ab"]
    assert np.array_equal(masks[0].as_reoriented(turn).dataobj, masks[1].dataobj)
    assert np.allclose(masks[1].affine, turned.affine, atol=1e-4)
    assert 0.01 < np.asarray(masks[1].dataobj).mean() < 0.99
    maps = [nibabel.load(tmp_path / "out" / "probabilities" / f"{name}.nii.gz") for name in "ab"]
    assert np.allclose(maps[0].as_reoriented(turn).dataobj, maps[1].dataobj, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype", "scaling"),
    [
        ((40, 36), np.int16, (1, 0)),
        ((40, 36, 6, 1), np.int16, (1, 0)),
        ((40, 36, 1), np.float64, (1, 0)),
        ((40, 36, 6), np.uint8, (6.0, -1000.0)),
        ((40, 36, 6), np.int16, (0.5, 100.0)),
    ],
    ids=str,
)
def test_other_shapes_and_scaled_values(tmp_path, shape, dtype, scaling):
    """The same values predict the same, however they are stored."""
    ensemble = one(tmp_path)
    hu = smooth_volume()[..., : shape[2] if len(shape) > 2 else 1]
    slope, inter = scaling
    stored = np.rint((hu - inter) / slope).clip(
        np.iinfo(np.uint8).min if dtype == np.uint8 else -30000, 30000
    )
    image = write(tmp_path / "a.nii.gz", stored.astype(dtype).reshape(shape), slope=slope, inter=inter)
    predict(ensemble, image, tmp_path / "out")
    mask = nibabel.load(tmp_path / "out" / "a.nii.gz")
    assert mask.shape == shape and np.array_equal(mask.affine, nibabel.load(image).affine)
    write(tmp_path / "b.nii.gz", (stored * slope + inter).astype(np.float64).reshape(hu.shape))
    predict(ensemble, tmp_path / "b.nii.gz", tmp_path / "out")
    assert np.array_equal(np.asarray(mask.dataobj).reshape(hu.shape), values(tmp_path / "out" / "b.nii.gz"))


def test_the_report_tells_what_lies_in_the_files(tmp_path):
    ensemble = one(tmp_path)
    image = volume(tmp_path / "ct.nii.gz")
    lung = np.zeros((40, 36, 6), np.uint8)
    lung[5:30, 4:30, 1:5] = 7
    write(tmp_path / "lung.nii", lung)
    report = predict(ensemble, image, tmp_path / "out", tmp_path / "lung.nii", attention=True)
    assert json.loads((tmp_path / "out" / "ct.json").read_text()) == report
    mask = values(tmp_path / "out" / "ct.nii.gz") > 0
    ml = 0.8 * 0.8 * 5 / 1000
    result = report["result"]
    assert result["voxel_ml"] == pytest.approx(ml, rel=1e-6)
    assert result["lesion"]["voxels"] == mask.sum() and result["lesion"]["ml"] == pytest.approx(
        mask.sum() * ml
    )
    touched = np.flatnonzero(mask.any((0, 1)))
    assert result["slices"] == {"total": 6, "touched": len(touched), "first": touched[0], "last": touched[-1]}
    parts, count = ndimage.label(mask)
    assert result["components"]["count"] == count
    assert result["components"]["largest_ml"] == pytest.approx(np.bincount(parts.ravel())[1:].max() * ml)
    inside = (mask & (lung > 0)).sum()
    assert result["lung"]["ml"] == pytest.approx((lung > 0).sum() * ml)
    assert result["lung"]["lesion_share"] == pytest.approx(inside / (lung > 0).sum(), abs=1e-6)
    assert result["lung"]["lesion_outside_ml"] == pytest.approx((mask.sum() - inside) * ml)

    def checked(entry, folder=Path()):
        assert hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]

    for entry in (report["input"], report["lung_mask"], *report["checkpoints"]):
        checked(entry)
    outputs = report["outputs"]
    for entry in (outputs["mask"], *outputs["probabilities"], *outputs["attention"]):
        checked(entry, tmp_path / "out")
    assert len(outputs["attention"]) == 2 and outputs["picture"] is None
    assert report["notes"] == ["slices are not square; resized without keeping the aspect ratio"]


def test_what_is_not_defined_is_null(tmp_path):
    ensemble = one(tmp_path)
    image = nibabel.Nifti1Image(smooth_volume(), None)
    image.set_sform(np.zeros((4, 4)), code=1)
    nibabel.save(image, tmp_path / "ct.nii")
    lung = nibabel.Nifti1Image(np.zeros((40, 36, 6), np.uint8), None)
    nibabel.save(lung, tmp_path / "lung.nii")
    report = predict(ensemble, tmp_path / "ct.nii", tmp_path / "out", tmp_path / "lung.nii")
    assert "cannot be inverted" in report["input"]["affine_problem"]
    assert report["result"]["lesion"]["ml"] is None and report["result"]["lesion"]["voxels"] > 0
    assert report["result"]["lung"]["lesion_share"] is None


@pytest.mark.parametrize(
    ("lung", "said"),
    [
        (np.ones((40, 36, 5), np.uint8), "expected the shape of"),
        (np.full((40, 36, 6), np.nan, np.float32), "expected labels, got values that are NaN"),
    ],
)
def test_a_lung_mask_that_does_not_belong(tmp_path, lung, said):
    write(tmp_path / "lung.nii", lung)
    with pytest.raises(DataError, match=said):
        predict(one(tmp_path), volume(tmp_path / "ct.nii"), tmp_path / "out", tmp_path / "lung.nii")
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_labels_that_were_kept_apart_come_back(tmp_path):
    image = volume(tmp_path / "ct.nii.gz")
    kept = {"classes": 4, "labels": "keep"}
    predict(one(tmp_path, **kept), image, tmp_path / "numbers")
    report = predict(
        one(tmp_path, **kept, content={"label_values": [3, 40, 700]}), image, tmp_path / "values"
    )
    numbers, named = values(tmp_path / "numbers" / "ct.nii.gz"), values(tmp_path / "values" / "ct.nii.gz")
    assert numbers.dtype == np.uint8 and named.dtype == np.uint16
    assert len(np.unique(numbers)) > 2 and np.array_equal(np.array([0, 3, 40, 700])[numbers], named)
    assert [label["value"] for label in report["result"]["labels"]] == [3, 40, 700]
    maps = [values(tmp_path / "values" / "probabilities" / f"ct_label{k}.nii.gz") for k in (3, 40, 700)]
    assert (np.sum(maps, 0) <= 1 + 1e-5).all()
    assert np.array_equal(maps[1] == np.max([*maps, 1 - np.sum(maps, 0)], 0), named == 40)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5])
def test_components_slice_by_slice_are_those_of_the_volume(density):
    mask = np.random.default_rng(3).random((9, 14, 15)) < density
    mask[4] = density > 0.4
    components = Components()
    for part in mask:
        components.add(part)
    parts, count = ndimage.label(mask)
    assert sorted(components.sizes()) == sorted(np.bincount(parts.ravel())[1:])
    assert count == len(components.sizes())


def test_batches_change_nothing(tmp_path):
    ensemble = one(tmp_path)
    image = volume(tmp_path / "ct.nii.gz", SANE[:, [2, 0, 1, 3]], (7, 40, 36))
    masks = []
    for size in (1, 9):
        predict(ensemble, image, tmp_path / f"out{size}", batch_size=size)
        masks.append(values(tmp_path / f"out{size}" / "ct.nii.gz"))
    assert np.array_equal(*masks)


def test_inference_mode_is_off_for_whoever_takes_a_slice(tmp_path):
    ensemble = one(tmp_path)
    for prediction in ensemble(np.zeros((2, 32, 32), np.uint8), (20, 20), attention=True):
        assert not torch.is_inference_mode_enabled()
        assert prediction.attention.shape == (2, 20, 20)


#: Peak memory in MiB of a prediction of as many slices of 512 x 512 as asked, in a process of its own.
MEMORY = """
import resource, sys
from pathlib import Path
import torch
from tests.predictions import one, predict
folder, name = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
predict(one(folder), folder / f"{name}.nii.gz", folder / name, attention=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.extended
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=["axial last", "axial first"])
def test_memory_does_not_grow_with_the_number_of_slices(tmp_path, order):
    peaks = []
    for slices in (40, 400):
        shape = tuple(np.array((512, 512, slices))[list(order)])
        header = nibabel.Nifti1Image(np.zeros((1, 1, 1), np.int16), SANE[:, [*order, 3]]).header
        header.set_data_shape(shape)
        header.set_data_offset(352)
        with gzip.open(tmp_path / f"{slices}.nii.gz", "wb", 1) as file:
            header.write_to(file)
            for k in range(shape[2]):
                file.write(np.roll(smooth_volume((*shape[:2], 4), k)[..., 0], k).tobytes(order="F"))
        run = [sys.executable, "-c", MEMORY, str(tmp_path), str(slices)]
        peaks.append(int(subprocess.run(run, capture_output=True, text=True, check=True).stdout))
    # All of it would be 190 MiB of voxels, and 380 MiB for every map.
    assert peaks[1] < peaks[0] + 60, peaks
