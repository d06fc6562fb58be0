"""Loading sets: layouts, orientation, windowing, resizing, labels, selection, groups, cache."""

import gzip
import hashlib
import os
import struct

import numpy as np
import pytest
import torch.nn.functional as F
from torch import from_numpy

from asegnet_fast.data import DataError, load_image, load_slices, read_volume, resize_masks, write_volume
from asegnet_fast.data.intensity import ValueStatistics, window

from .data_sets import SANE, blob_mask, hu_volume, write, write_set


def test_pairs_give_slices_with_their_places(tmp_path):
    slices = load_slices(write_set(tmp_path), size=32)
    assert len(slices) == 9
    assert slices.images.shape == slices.masks.shape == (9, 32, 32)
    assert slices.images.dtype == slices.masks.dtype == np.uint8
    assert set(np.unique(slices.masks)) == {0, 1}
    assert slices.sources == tuple(f"images/case{k}.nii.gz" for k in (1, 2, 3) for _ in range(3))
    assert slices.indices == (1, 2, 4) * 3
    assert slices.groups == slices.sources
    assert (slices.num_classes, slices.label_values) == (2, (1,))
    assert slices.notes == (
        "all 3 images: slices are not square; resized without keeping the aspect ratio",
        "9 of 18 slices have no label above 0; left out",
    )


def test_names_sort_naturally(tmp_path):
    slices = load_slices(write_set(tmp_path, files=11), size=16, select="all")
    assert list(dict.fromkeys(slices.sources))[-2:] == ["images/case10.nii.gz", "images/case11.nii.gz"]
    assert len(slices) == 66


def test_the_papers_layout(tmp_path):
    for name in ("tr_im.nii.gz", "rp_im/1.nii", "rp_im/2.nii.gz", "val_im.nii.gz"):
        write(tmp_path / name, hu_volume())
    for name in ("tr_mask.nii.gz", "rp_msk/1.nii.gz", "rp_msk/2.nii.gz", "rp_lung_msk/1.nii.gz"):
        write(tmp_path / name, blob_mask())
    slices = load_slices(tmp_path, size=16)
    assert list(dict.fromkeys(slices.sources)) == ["tr_im.nii.gz", "rp_im/1.nii", "rp_im/2.nii.gz"]
    assert "val_im.nii.gz: has no labels; skipped" in slices.notes
    assert any(note.startswith("tr_im.nii.gz: names no patients") for note in slices.notes)


@pytest.mark.parametrize("half", ["tr", "rp"])
def test_either_half_of_the_papers_layout_is_enough(tmp_path, half):
    image, mask = (
        ("tr_im.nii.gz", "tr_mask.nii.gz") if half == "tr" else ("rp_im/1.nii.gz", "rp_msk/1.nii.gz")
    )
    write(tmp_path / image, hu_volume())
    write(tmp_path / mask, blob_mask())
    assert set(load_slices(tmp_path, size=16).sources) == {image}


def test_nnunet_layout(tmp_path):
    write(tmp_path / "imagesTr/lung_001_0000.nii.gz", hu_volume())
    write(tmp_path / "labelsTr/lung_001.nii.gz", blob_mask())
    assert set(load_slices(tmp_path, size=16).sources) == {"imagesTr/lung_001_0000.nii.gz"}


def test_hidden_files_are_passed_over_and_others_noted(tmp_path):
    write_set(tmp_path)
    (tmp_path / "images/._case1.nii.gz").write_bytes(b"x")
    (tmp_path / "images/readme.txt").write_text("x")
    assert "images/readme.txt: not a NIfTI file; ignored" in load_slices(tmp_path, size=16).notes


def test_window_of_known_hu():
    values = np.array([-3000, -1024, -212, 0, 600, 3000], np.int16)
    expected = [0, 0, 127.5, 255 * 1024 / 1624, 255, 255]
    assert np.allclose(window(values, -1024, 600), expected, rtol=0, atol=1e-4)


def test_values_reach_the_slices_unchanged_when_nothing_is_resized(tmp_path):
    hu = hu_volume((24, 24, 3))
    write(tmp_path / "images/a.nii.gz", hu)
    write(tmp_path / "masks/a.nii.gz", np.ones(hu.shape, np.uint8))
    slices = load_slices(tmp_path, size=24)
    # SANE stores columns to the left and rows to the back, so only a transposition is left.
    expected = np.rint(255 * (np.clip(hu.astype(np.float64), -1024, 600) + 1024) / 1624)
    assert np.array_equal(slices.images, expected.transpose(2, 1, 0))
    assert slices.notes == ()


def test_scaling_of_the_header_is_applied(tmp_path):
    stored = np.random.default_rng(0).integers(0, 2000, (16, 16, 4), dtype=np.int16)
    for name, data, slope, inter in (("a", stored, 0.5, -1024.0), ("b", stored * 0.5 - 1024, 1, 0)):
        write(tmp_path / name / "images/x.nii.gz", data, slope=slope, inter=inter)
        write(tmp_path / name / "masks/x.nii.gz", np.ones(stored.shape, np.uint8))
    scaled, plain = (load_slices(tmp_path / name, size=16) for name in "ab")
    assert read_volume(tmp_path / "a/images/x.nii.gz").data.min() < -900
    assert np.array_equal(scaled.images, plain.images)


@pytest.mark.parametrize("turn", ["LPS", "RAS", "LSP", "SAR", "PIR"])
def test_slices_look_the_same_however_the_file_is_turned(tmp_path, turn):
    """One body stored along other axes gives the same pictures; indices count along the stored axis."""
    import nibabel

    base = nibabel.Nifti1Image(hu_volume((20, 20, 5)), SANE)
    mask = nibabel.Nifti1Image(blob_mask((20, 20, 5)), SANE)
    to = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(SANE), nibabel.orientations.axcodes2ornt(turn)
    )
    for name, image in (("images/a.nii.gz", base), ("masks/a.nii.gz", mask)):
        turned = image.as_reoriented(to)
        write(tmp_path / "turned" / name, np.asarray(turned.dataobj), turned.affine)
        write(tmp_path / "base" / name, np.asarray(image.dataobj))
    assert "".join(nibabel.aff2axcodes(nibabel.load(tmp_path / "turned/images/a.nii.gz").affine)) == turn
    got, expected = (load_slices(tmp_path / name, size=20) for name in ("turned", "base"))
    upside_down = "I" in turn
    assert got.indices == (
        tuple(sorted(4 - i for i in expected.indices)) if upside_down else expected.indices
    )
    step = -1 if upside_down else 1
    assert np.array_equal(got.images[::step], expected.images)
    assert np.array_equal(got.masks[::step], expected.masks)


@pytest.mark.parametrize("affine", [SANE, np.diag([1.0, 1, 1, 1]), SANE[[2, 0, 1, 3]]])
def test_from_slices_undoes_to_slices(tmp_path, affine):
    data = hu_volume((7, 9, 5))
    volume = read_volume(write(tmp_path / "a.nii", data, affine))
    assert np.array_equal(volume.from_slices(volume.to_slices()), data)
    write_volume(tmp_path / "b.nii.gz", volume.from_slices(volume.to_slices()), volume.affine)
    back = read_volume(tmp_path / "b.nii.gz")
    assert np.array_equal(back.data, data) and np.allclose(back.affine, affine)


def test_load_image_prepares_a_volume_as_a_set_does(tmp_path):
    write_set(tmp_path, files=1)
    volume, images, notes = load_image(tmp_path / "images/case1.nii.gz", size=20)
    slices = load_slices(tmp_path, size=20, select="all")
    assert np.array_equal(images, slices.images)
    assert len(notes) == 1 and "not square" in notes[0]
    mask = volume.from_slices(resize_masks(slices.masks, volume.to_slices().shape[1:]))
    truth = blob_mask()
    assert mask.shape == truth.shape
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.9


def test_images_are_resized_antialiased_and_masks_by_nearest(tmp_path):
    hu = hu_volume((48, 48, 2))
    labels = np.random.default_rng(1).choice(np.array([0, 2, 7], np.uint8), hu.shape)
    write(tmp_path / "images/a.nii.gz", hu)
    write(tmp_path / "masks/a.nii.gz", labels)
    slices = load_slices(tmp_path, size=20, labels="keep")
    grey = from_numpy(window(hu.transpose(2, 1, 0), -1024, 600))[:, None]
    expected = F.interpolate(grey, (20, 20), mode="bilinear", antialias=True)[:, 0].numpy()
    assert np.abs(slices.images - expected).max() <= 0.5 + 1e-3
    # The nearest pixel to the centre of output pixel i is floor((i + 0.5) * 48 / 20).
    nearest = ((np.arange(20) + 0.5) * 48 / 20).astype(int)
    expected = labels.transpose(2, 1, 0)[:, nearest][:, :, nearest]
    assert np.array_equal(np.array([0, 2, 7])[slices.masks], expected)
    assert (slices.num_classes, slices.label_values) == (3, (2, 7))


def test_labels_kept_apart_mean_the_same_in_every_file(tmp_path):
    write_set(tmp_path, files=2)
    write(tmp_path / "masks/case1.nii.gz", blob_mask(label=9))
    write(tmp_path / "masks/case2.nii.gz", blob_mask(label=3))
    slices = load_slices(tmp_path, size=32, labels="keep")
    assert (slices.num_classes, slices.label_values) == (3, (3, 9))
    assert set(np.unique(slices.masks[:3])) == {0, 2} and set(np.unique(slices.masks[3:])) == {0, 1}
    merged = load_slices(tmp_path, size=32)
    assert merged.label_values == (3, 9) and np.array_equal(merged.masks, slices.masks > 0)


def test_float_masks_and_a_fourth_axis_of_one_are_accepted(tmp_path):
    write(tmp_path / "images/a.nii.gz", hu_volume()[..., None])
    write(tmp_path / "masks/a.nii.gz", blob_mask().astype(np.float32))
    assert len(load_slices(tmp_path, size=16)) == 3


def test_a_lesion_lost_in_the_resize_is_counted(tmp_path):
    mask = blob_mask((64, 64, 4), lesion_slices=(0,))
    mask[1, 1, 2] = 1  # far from the pixels a size of 8 keeps
    write(tmp_path / "images/a.nii.gz", hu_volume((64, 64, 4)))
    write(tmp_path / "masks/a.nii.gz", mask)
    slices = load_slices(tmp_path, size=8)
    assert slices.indices == (0, 2) and not slices.masks[1].any()
    assert any(note.startswith("1 of 2 slices lose their whole lesion") for note in slices.notes)


def test_what_looks_like_hu():
    rng = np.random.default_rng(0)
    assert ValueStatistics().add(hu_volume()).looks_like_hu
    assert not ValueStatistics().add(rng.integers(0, 256, (8, 8, 8), dtype=np.uint8)).looks_like_hu
    assert not ValueStatistics().add(rng.normal(size=(8, 8, 8))).looks_like_hu
    assert not ValueStatistics().add(hu_volume() + np.int16(1024)).looks_like_hu


def test_intensity_options(tmp_path):
    grey = np.random.default_rng(0).integers(10, 211, (16, 16, 4), dtype=np.int16)
    grey[0, 0, 0], grey[0, 0, 1] = 10, 210
    write(tmp_path / "images/a.nii.gz", grey)
    write(tmp_path / "masks/a.nii.gz", np.ones(grey.shape, np.uint8))
    auto, hu, raw = (load_slices(tmp_path, size=16, intensity=name) for name in ("auto", "hu", "raw"))
    said = "images/a.nii.gz: values 10 to 210 do not look like Hounsfield units; "
    assert auto.notes == (said + "scaled by their own range",)
    assert hu.notes == (said + "windowed as if they were",)
    assert raw.notes == ()
    assert np.array_equal(auto.images, raw.images) and (raw.images.min(), raw.images.max()) == (0, 255)
    assert np.array_equal(hu.images, np.rint(255 * (grey.transpose(2, 1, 0) + 1024.0) / 1624))


@pytest.mark.parametrize(
    ("affine", "said"),
    [(np.diag([1.0, 1, 5, 1]), "looks invented"), (np.eye(4), "looks invented"), (SANE, None)],
)
def test_an_invented_affine_is_noted(tmp_path, affine, said):
    write(tmp_path / "images/a.nii.gz", hu_volume((16, 16, 4)), affine)
    write(tmp_path / "masks/a.nii.gz", np.ones((16, 16, 4), np.uint8), affine)
    notes = load_slices(tmp_path, size=16).notes
    assert [said in note for note in notes] == ([True] if said else [])


def test_an_affine_that_cannot_be_inverted_leaves_the_third_axis(tmp_path):
    path = write(tmp_path / "images/a.nii", hu_volume((16, 16, 4)))
    write(tmp_path / "masks/a.nii", np.ones((16, 16, 4), np.uint8))
    raw = bytearray(path.read_bytes())
    raw[252:256] = struct.pack("<2h", 0, 1)  # qform and sform code
    raw[280:328] = struct.pack("<12f", 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0)
    path.write_bytes(raw)
    slices = load_slices(tmp_path, size=16)
    assert slices.notes == (
        "images/a.nii: the affine cannot be inverted; slices are taken along the third axis and may be turned",
    )
    volume = read_volume(path)
    write_volume(tmp_path / "b.nii", volume.data, volume.affine)
    assert np.array_equal(read_volume(tmp_path / "b.nii").data, volume.data)


def test_repaired_headers_stay_quiet(tmp_path, capfd):
    path = write(tmp_path / "a.nii", hu_volume())
    raw = bytearray(path.read_bytes())
    raw[76:80] = struct.pack("<f", 3.0)  # pixdim[0], which nibabel repairs and reports
    path.write_bytes(raw)
    read_volume(path)
    assert capfd.readouterr() == ("", "")


def test_groups_csv(tmp_path):
    write_set(tmp_path)
    (tmp_path / "groups.csv").write_text(
        "file,first,last,patient\nimages/case1.nii.gz,0,1,a\nimages/case1.nii.gz,2,5,b\n"
        "images/case2.nii.gz,0,5,b\nimages/case3.nii.gz,0,5,c\n"
    )
    slices = load_slices(tmp_path, size=16, groups=tmp_path / "groups.csv")
    assert slices.groups == ("a", "b", "b", "b", "b", "b", "c", "c", "c")
    plain = load_slices(tmp_path, size=16)
    assert any(
        note.startswith("groups.csv: lies in the folder but was not asked for") for note in plain.notes
    )
    assert slices.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected the header"),
        ("file;first;last;patient\n", "expected the header"),
        (
            "file,first,last,patient\nimages/nobody.nii.gz,0,1,a\n",
            "line 2: expected an image file of the set",
        ),
        ("file,first,last,patient\nimages/case1.nii.gz,0,x,a\n", "line 2: expected slice numbers"),
        ("file,first,last,patient\nimages/case1.nii.gz,-1,2,a\n", "line 2: expected slice numbers"),
        ("file,first,last,patient\nimages/case1.nii.gz,0,6,a\n", "line 2: expected first <= last <= 5"),
        ("file,first,last,patient\nimages/case1.nii.gz,3,2,a\n", "line 2: expected first <= last <= 5"),
        ("file,first,last,patient\nimages/case1.nii.gz,0,5,\n", "line 2: expected a patient"),
        ("file,first,last,patient\nimages/case1.nii.gz,0,5\n", "line 2: expected 4 columns"),
        (
            "file,first,last,patient\nimages/case1.nii.gz,0,3,a\nimages/case1.nii.gz,3,5,b\n",
            "line 3: expected ranges that do not overlap, slice 3",
        ),
        ("file,first,last,patient\nimages/case1.nii.gz,0,3,a\n", "got none for images/case1.nii.gz slice 4"),
    ],
)
def test_a_bad_groups_csv_is_one_line(tmp_path, text, said):
    write_set(tmp_path, files=1)
    path = tmp_path / "patients.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_slices(tmp_path, size=16, groups=path)
    assert said in str(caught.value) and "patients.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_fingerprint_follows_the_content(tmp_path):
    write_set(tmp_path)
    first = load_slices(tmp_path, size=16)
    assert first.fingerprint == load_slices(tmp_path, size=16).fingerprint
    mask = blob_mask()
    mask[:2, :2] = 1
    write(tmp_path / "masks/case2.nii.gz", mask)
    assert first.fingerprint != load_slices(tmp_path, size=16).fingerprint


def test_the_cache_is_used_and_follows_files_and_options(tmp_path, monkeypatch):
    write_set(tmp_path / "set")
    cache = tmp_path / "cache"
    first = load_slices(tmp_path / "set", size=16, cache=cache)
    calls = []
    monkeypatch.setattr(
        "asegnet_fast.data.medseg.read_volume", lambda *args: calls.append(args) or read_volume(*args)
    )
    again = load_slices(tmp_path / "set", size=16, cache=cache)
    assert not calls and again.fingerprint == first.fingerprint and again.notes == first.notes
    load_slices(tmp_path / "set", size=17, cache=cache)
    assert len(calls) == 6
    path = tmp_path / "set/images/case1.nii.gz"
    os.utime(path, ns=(0, 123))
    load_slices(tmp_path / "set", size=16, cache=cache)
    assert len(calls) == 12
    assert len(list(cache.iterdir())) == 3


def test_each_file_is_decoded_once(tmp_path, monkeypatch):
    write_set(tmp_path)
    calls, seen = [], []
    monkeypatch.setattr(
        "asegnet_fast.data.medseg.read_volume", lambda *args: calls.append(args[1]) or read_volume(*args)
    )
    load_slices(tmp_path, size=16, progress=lambda *args: seen.append(args))
    assert len(calls) == len(set(calls)) == 6
    assert seen == [(k, 3, f"images/case{k}.nii.gz") for k in (1, 2, 3)]


@pytest.mark.parametrize("damage", ["empty", "half", "garbage", "flipped", "array"])
def test_a_damaged_cache_is_rebuilt_with_a_note(tmp_path, damage):
    write_set(tmp_path / "set")
    cache = tmp_path / "cache"
    first = load_slices(tmp_path / "set", size=16, cache=cache)
    (path,) = cache.iterdir()
    good = path.read_bytes()
    middle = len(good) // 3
    if damage == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(
            {
                "empty": b"",
                "half": good[: len(good) // 2],
                "garbage": hashlib.sha512(good).digest() * 20,
                "flipped": good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :],
            }[damage]
        )
    again = load_slices(tmp_path / "set", size=16, cache=cache)
    assert again.fingerprint == first.fingerprint
    assert sum("cache could not be used" in note for note in again.notes) == 1
    assert load_slices(tmp_path / "set", size=16, cache=cache).notes == first.notes


def test_a_cache_that_is_a_file_is_an_error(tmp_path):
    write_set(tmp_path / "set")
    (tmp_path / "cache").write_text("x")
    with pytest.raises(DataError, match="cache: expected a folder"):
        load_slices(tmp_path / "set", size=16, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    "option", [{"size": 0}, {"size": 2.5}, {"intensity": "HU"}, {"labels": "all"}, {"select": "some"}]
)
def test_options_out_of_range_name_the_option(tmp_path, option):
    with pytest.raises(ValueError, match=f"^{next(iter(option))}: expected .* got "):
        load_slices(tmp_path, **option)


def test_gzip_is_known_by_name_in_any_case(tmp_path):
    path = write(tmp_path / "a.nii", hu_volume())
    upper = tmp_path / "B.NII.GZ"
    upper.write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(read_volume(upper).data, read_volume(path).data)
