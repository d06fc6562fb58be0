"""Real CT: the two sets in the paper's layout (grey values), and a CT in Hounsfield units."""

import nibabel
import numpy as np
import pytest

from asegnet_fast.data import load_folds, load_slices, make_folds, read_volume, save_folds


@pytest.fixture
def covid_ct(real_data):
    return real_data / "covid_ct"


def test_the_two_sets(covid_ct):
    slices = load_slices(covid_ct, size=128)
    assert len(slices) == 421
    assert slices.images.shape == slices.masks.shape == (421, 128, 128)
    assert set(np.unique(slices.masks)) == {0, 1} and slices.label_values == (1,)
    assert len(set(slices.groups)) == 10
    assert slices.sources.count("tr_im.nii.gz") == 56 and slices.sources.count("rp_im/2.nii.gz") == 118
    assert list(dict.fromkeys(slices.sources)) == [
        "tr_im.nii.gz",
        *(f"rp_im/{k}.nii.gz" for k in range(1, 10)),
    ]
    for said in (
        "all 10 images: values 0 to 255 do not look like Hounsfield units; scaled by their own range",
        "all 10 images: the affine looks invented",
        "groups.csv: lies in the folder but was not asked for",
    ):
        assert sum(note.startswith(said) for note in slices.notes) == 1
    stored = np.concatenate(
        [np.asarray(nibabel.load(covid_ct / f"rp_msk/{k}.nii.gz").dataobj).ravel() for k in range(1, 10)]
    )
    assert slices.masks[56:].mean() == pytest.approx((stored > 0).mean(), rel=0.02)


def test_grey_values_arrive_as_they_are(covid_ct):
    slices = load_slices(covid_ct, size=256)
    volume = read_volume(covid_ct / "rp_im/4.nii.gz")
    chosen = [i for i, source in enumerate(slices.sources) if source == "rp_im/4.nii.gz"]
    assert np.array_equal(slices.images[chosen], volume.to_slices()[[slices.indices[i] for i in chosen]])


def test_folds_by_the_groups_file(covid_ct, tmp_path):
    slices = load_slices(covid_ct, size=64, groups=covid_ct / "groups.csv", cache=tmp_path / "cache")
    again = load_slices(covid_ct, size=64, groups=covid_ct / "groups.csv", cache=tmp_path / "cache")
    assert slices.fingerprint == again.fingerprint and np.array_equal(slices.images, again.images)
    assert len(set(slices.groups)) == 10
    # Two series of one patient, and two patients in one file.
    assert slices.groups.count("radiopaedia-a") == 129
    assert slices.groups.count("coronacase-3") == 30 and slices.groups.count("coronacase-4") == 26
    folds = make_folds(slices, 5, "patient", seed=0)
    assert folds.leak_percent == 0
    assert [len({slices.groups[i] for i in part}) >= 1 for part in folds.test] == [True] * 5
    assert sum(len(part) for part in folds.test) == 421
    leaky = make_folds(slices, 5, "slice", seed=0)
    assert 92 < leaky.leak_percent < 99
    for made in (folds, leaky):
        save_folds(tmp_path / "folds.json", made, slices)
        assert load_folds(tmp_path / "folds.json", slices) == made


def test_a_ct_in_hounsfield_units(real_data, tmp_path):
    for folder, name in (("images", "example_ct_sm"), ("masks", "example_seg")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "case.nii.gz").write_bytes((real_data / f"ct_hu/{name}.nii.gz").read_bytes())
    slices = load_slices(tmp_path, size=96, labels="keep", select="all")
    assert len(slices) == 30 and slices.images.shape == (30, 96, 96)
    assert slices.num_classes == 1 + len(slices.label_values) == 42
    assert slices.notes == (
        "images/case.nii.gz: slices are not square; resized without keeping the aspect ratio",
    )
    volume = read_volume(tmp_path / "images/case.nii.gz")
    assert (volume.data.min(), volume.data.max()) == (-1100, 1207)
    # Outside the patient is air, soft tissue lies near 255 (40 + 1024) / 1624 = 167.
    assert slices.images[:, :4, :4].max() < 20
    assert 155 < np.median(slices.images[slices.masks > 0]) < 180
