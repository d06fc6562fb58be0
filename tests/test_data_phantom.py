"""The synthetic set: layout, values, variety, and the same values for the same seed."""

import itertools

import nibabel
import numpy as np
import pytest

from asegnet_fast.data import load_slices, read_volume, write_phantom


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom(
        tmp_path_factory.mktemp("phantom"), patients=8, slices_per_patient=12, size=96, seed=5
    )


def volumes(root):
    pairs = [("tr_im", "tr_mask"), *((f"rp_im/{k}", f"rp_msk/{k}") for k in range(1, 8))]
    return [tuple(read_volume(root / f"{name}.nii.gz") for name in pair) for pair in pairs]


def test_files_are_in_the_papers_layout(phantom):
    files = {path.relative_to(phantom).as_posix() for path in phantom.rglob("*.nii.gz")}
    numbered = {f"{folder}/{k}.nii.gz" for folder in ("rp_im", "rp_msk") for k in range(1, 8)}
    assert files == numbered | {"tr_im.nii.gz", "tr_mask.nii.gz"}
    for image, mask in volumes(phantom):
        assert image.data.shape == mask.data.shape == (96, 96, 12)
        assert image.data.dtype == np.int16 and mask.data.dtype == np.uint8
        assert image.affine_problem is None and mask.affine_problem is None
        assert np.allclose(nibabel.affines.voxel_sizes(image.affine), (3.75, 3.75, 5.0))
        header = nibabel.load(phantom / "tr_im.nii.gz").header
        assert header.get_xyzt_units()[0] == "mm"


def test_values_are_hounsfield_units(phantom):
    for image, mask in volumes(phantom):
        assert image.data.min() >= -1024 and image.data.max() <= 3071
        assert image.data[:4].mean() == pytest.approx(-1000, abs=20)  # air beside the patient
        assert image.data.max() > 250  # bone
        assert set(np.unique(mask.data)) <= {0, 1, 2}
    glass = np.concatenate([image.data[mask.data == 1] for image, mask in volumes(phantom)])
    solid = np.concatenate([image.data[mask.data == 2] for image, mask in volumes(phantom)])
    assert -700 < np.median(glass) < -300 and -50 < np.median(solid) < 100
    assert len(glass) > 1000 and len(solid) > 1000


def test_lesions_vary_in_size_and_some_slices_have_none(phantom):
    slices = load_slices(phantom, size=96, select="all", labels="keep")
    assert (slices.num_classes, slices.label_values) == (3, (1, 2))
    assert not any("Hounsfield" in note or "affine" in note for note in slices.notes)
    share = (slices.masks > 0).mean(axis=(1, 2))
    assert 0.2 < (share == 0).mean() < 0.6
    share = share[share > 0]
    assert share.min() < 0.002 and share.max() > 0.03 and share.max() < 0.2
    for source in set(slices.sources):
        assert any(slices.masks[i].any() for i in range(len(slices)) if slices.sources[i] == source)


def test_lesions_continue_from_slice_to_slice(phantom):
    together = apart = 0
    for _, mask in volumes(phantom):
        lesion = mask.to_slices() > 0
        for here, there in itertools.pairwise(lesion):
            if here.any() and there.any():
                together += np.count_nonzero(here & there)
                apart += np.count_nonzero(here ^ there)
    assert together > apart


def test_lesions_lie_in_air_of_the_chest_and_stand_out(phantom):
    """No threshold gives the mask away, yet lesions differ from healthy lung."""
    slices = load_slices(phantom, size=96)
    lesion = slices.masks > 0
    best = max(
        2 * np.count_nonzero(lesion & band) / (lesion.sum() + band.sum())
        for low in range(0, 250, 15)
        for high in range(low + 15, 256, 15)
        for band in [(slices.images >= low) & (slices.images < high)]
    )
    assert best < 0.7
    assert np.median(slices.images[lesion]) > 40


def test_the_seed_decides(tmp_path):
    def values(name, seed):
        root = write_phantom(tmp_path / name, patients=2, slices_per_patient=5, size=40, seed=seed)
        return [read_volume(path).data for path in sorted(root.rglob("*.nii.gz"))]

    first, again, other = values("a", 1), values("b", 1), values("c", 2)
    assert len(first) == 4
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not any(np.array_equal(x, y) for x, y in zip(first, other, strict=True))
    # Patients of one set differ from each other.
    assert not np.array_equal(first[0], first[2])


def test_one_patient_is_one_file(tmp_path):
    root = write_phantom(tmp_path / "new" / "set", patients=1, slices_per_patient=4, size=32)
    assert sorted(path.name for path in root.iterdir()) == ["tr_im.nii.gz", "tr_mask.nii.gz"]


@pytest.mark.parametrize("option", [{"patients": 0}, {"slices_per_patient": 3}, {"size": 31}, {"seed": -1}])
def test_options_out_of_range_name_the_option(tmp_path, option):
    with pytest.raises(ValueError, match=f"^{next(iter(option))}: expected .* got"):
        write_phantom(tmp_path, **option)
