"""Everything that can be wrong with a set: one DataError of one line that names the file, and nothing else."""

import gzip
import struct

import nibabel
import numpy as np
import pytest

from asegnet_fast.data import DataError, load_slices

from .data_sets import SANE, blob_mask, hu_volume, write, write_set

IMAGE, MASK = "images/case2.nii.gz", "masks/case2.nii.gz"


def complaint(root, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_slices(root, size=16, **options)
    text = str(caught.value)
    assert "\n" not in text and "expected" in text
    return text


def header_field(path, offset: int, form: str, *values) -> None:
    """Overwrites bytes of the header of a .nii.gz file."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(form, raw, offset, *values)
    path.write_bytes(gzip.compress(bytes(raw)))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-400])


def _truncate_inside(path):
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw[:-1000]))


def _flip_a_byte(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(raw)


def _wrong_checksum(path):
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 255
    path.write_bytes(raw)


def _become_a_folder(path):
    path.unlink()
    path.mkdir()


def _claim_a_huge_shape(path):
    header_field(path, 40, "<8h", 3, 30000, 30000, 1000, 1, 1, 1, 1)


def _claim_more_than_the_file(path):
    header_field(path, 40, "<8h", 3, 2000, 2000, 30, 1, 1, 1, 1)


def _other_format(path):
    plain = path.with_name("other.mgh")
    nibabel.save(nibabel.MGHImage(np.zeros((4, 4, 4), np.float32), np.eye(4)), plain)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()


def _rgb(path):
    pixels = np.zeros((8, 8, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nibabel.save(nibabel.Nifti1Image(pixels, SANE), path)


def _with_voxel(value):
    def damage(path):
        data = hu_volume().astype(np.float32)
        data[3, 4, 5] = value
        write(path, data)

    damage.__name__ = f"voxel_{value}"
    return damage


# How one image of a good set is spoilt, and what the complaint must say beside the file's name.
DAMAGES = [
    (lambda path: path.write_bytes(b""), "0 bytes"),
    (lambda path: path.write_bytes(b"not a volume at all" * 40), "header cannot be read"),
    (lambda path: path.write_bytes(gzip.compress(b"not a volume at all" * 40)), "header cannot be read"),
    (lambda path: path.write_bytes(path.read_bytes()[:40]), "header cannot be read"),
    (_truncate, "the compressed data end early"),
    (_truncate_inside, "truncated"),
    (_flip_a_byte, "expected"),
    (_wrong_checksum, "CRC"),
    (_become_a_folder, "a folder"),
    (_claim_a_huge_shape, "the header claims 1,800,000,000,000"),
    (_claim_more_than_the_file, "the header claims 240,000,000"),
    (lambda path: header_field(path, 40, "<8h", 3, 40, 0, 6, 1, 1, 1, 1), "40 x 0 x 6"),
    (lambda path: header_field(path, 40, "<8h", 3, 40, -36, 6, 1, 1, 1, 1), "expected"),
    (lambda path: header_field(path, 70, "<h", 9999), "header cannot be read"),
    (lambda path: header_field(path, 108, "<f", 1e12), "expected"),
    (lambda path: header_field(path, 108, "<f", float("nan")), "expected"),
    (lambda path: header_field(path, 112, "<2f", 1.0, float("inf")), "header cannot be read"),
    (lambda path: header_field(path, 112, "<2f", 3e38, 0.0), "NaN or infinite"),
    (_other_format, "expected a NIfTI file"),
    (_rgb, "expected real numbers"),
    (_with_voxel(np.nan), "1 voxels that are NaN or infinite"),
    (_with_voxel(-np.inf), "1 voxels that are NaN or infinite"),
    (lambda path: write(path, hu_volume((40, 36, 5))), "40 x 36 x 5"),
    (lambda path: write(path, hu_volume()[:, 0, 0]), "expected three dimensions, got shape 40"),
    (lambda path: write(path, hu_volume()[:, :, 0]), "40 x 36 x 1"),
    (lambda path: write(path, np.stack([hu_volume()] * 2, -1)), "got shape 40 x 36 x 6 x 2"),
    (
        lambda path: write(path, hu_volume(), SANE + 20 * np.eye(4, k=3)),
        "puts a corner of the volume 20 mm away",
    ),
]


@pytest.mark.parametrize(
    ("damage", "said"), DAMAGES, ids=[f"{i}-{s[:30]}" for i, (_, s) in enumerate(DAMAGES)]
)
def test_a_bad_image_is_one_line_that_names_it(tmp_path, damage, said):
    write_set(tmp_path)
    load_slices(tmp_path, size=16)
    damage(tmp_path / IMAGE)
    text = complaint(tmp_path)
    assert "case2.nii.gz" in text and said in text


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("keep", [0, 10, 200, 348, 351, 360, 5000])
def test_a_file_cut_anywhere_is_one_line(tmp_path, suffix, keep):
    write(tmp_path / f"images/a{suffix}", hu_volume())
    write(tmp_path / "masks/a.nii", blob_mask())
    path = tmp_path / f"images/a{suffix}"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"a{suffix}" in complaint(tmp_path)


def test_random_damage_never_shows_another_exception(tmp_path):
    """A changed byte is either harmless (an unused header field) or a DataError."""
    write_set(tmp_path, files=1)
    path = write(tmp_path / "images/case1.nii", hu_volume((12, 12, 3)))
    (tmp_path / "images/case1.nii.gz").unlink()
    write(tmp_path / "masks/case1.nii.gz", np.ones((12, 12, 3), np.uint8))
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    errors = 0
    for offset in rng.integers(0, 352, 150):
        raw = bytearray(good)
        raw[offset] ^= int(rng.integers(1, 256))
        path.write_bytes(raw)
        try:
            load_slices(tmp_path, size=16)
        except DataError as error:
            errors += 1
            assert "case1.nii" in str(error) and "\n" not in str(error)
    assert errors > 10


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (blob_mask() * np.float32(0.5), "expected whole labels from 0, got 0.5"),
        (blob_mask().astype(np.int16) * np.int16(-3), "expected whole labels from 0, got -3"),
        (np.where(blob_mask() > 0, np.float32(np.nan), 0), "NaN"),
        (blob_mask((40, 36, 7)), "expected the shape of images/case2.nii.gz, 40 x 36 x 6, got 40 x 36 x 7"),
    ],
)
def test_a_bad_mask_is_one_line_that_names_it(tmp_path, mask, said):
    write_set(tmp_path)
    write(tmp_path / MASK, mask)
    text = complaint(tmp_path)
    assert text.startswith(MASK) and said in text


def test_too_many_labels_to_keep_apart(tmp_path):
    write_set(tmp_path, files=1)
    mask = np.arange(40 * 36 * 6, dtype=np.int16).reshape(40, 36, 6) % 300
    write(tmp_path / "masks/case1.nii.gz", mask)
    assert "masks/case1.nii.gz: expected at most 255 labels to keep apart, got 299" in complaint(
        tmp_path, labels="keep"
    )
    assert load_slices(tmp_path, size=16).num_classes == 2


def test_too_many_labels_in_all_files_together(tmp_path):
    write_set(tmp_path, files=2)
    ramp = np.arange(40 * 36 * 6, dtype=np.int16).reshape(40, 36, 6) % 200
    write(tmp_path / "masks/case1.nii.gz", ramp)
    write(tmp_path / "masks/case2.nii.gz", ramp + np.int16(100))
    assert "got 299" in complaint(tmp_path, labels="keep")


def test_255_labels_can_be_kept_apart(tmp_path):
    write_set(tmp_path, files=1)
    write(tmp_path / "masks/case1.nii.gz", (np.arange(36 * 36 * 6) % 256).reshape(36, 36, 6).astype(np.int16))
    write(tmp_path / "images/case1.nii.gz", hu_volume((36, 36, 6)))
    slices = load_slices(tmp_path, size=36, labels="keep")
    assert slices.num_classes == 256 and slices.masks.max() == 255


@pytest.mark.parametrize("grey", [False, True], ids=["HU", "0 to 255"])
def test_image_and_mask_swapped(tmp_path, grey):
    image = hu_volume()
    write_set(tmp_path)
    write(tmp_path / MASK, (image & np.int16(255)) if grey else image)
    write(tmp_path / IMAGE, blob_mask())
    text = complaint(tmp_path)
    assert MASK in text and IMAGE in text and "swapped" in text


@pytest.mark.parametrize("select", ["lesion", "all"])
def test_no_lesion_anywhere(tmp_path, select):
    write_set(tmp_path, files=1)
    write(tmp_path / "masks/case1.nii.gz", np.zeros((40, 36, 6), np.uint8))
    assert str(tmp_path) in complaint(tmp_path, select=select)


def _without(*names):
    def spoil(root):
        for name in names:
            (root / name).unlink()

    return spoil


def _copy(old, new):
    def spoil(root):
        (root / new).parent.mkdir(exist_ok=True)
        (root / new).write_bytes((root / old).read_bytes())

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without(IMAGE), "masks/case2.nii.gz: expected its image in images/, found none"),
        (_without(MASK), "images/case2.nii.gz: expected its mask in masks/, found none"),
        (_without(MASK, "masks/case3.nii.gz"), "found none (and 1 more like it)"),
        (_copy(IMAGE, "tr_im.nii.gz"), "expected one layout"),
        (_copy(IMAGE, "imagesTr/a_0000.nii.gz"), "expected one layout"),
        (_copy(IMAGE, "images/case2.nii"), "expected one file per name"),
        (_copy(MASK, "labels/case2.nii.gz"), "expected masks/ or labels/, got both"),
    ],
)
def test_files_without_partners_and_two_layouts(tmp_path, spoil, said):
    write_set(tmp_path)
    spoil(tmp_path)
    text = complaint(tmp_path)
    assert said in text and str(tmp_path) in text


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "got none of them"),
        (["notes.txt"], "got none of them"),
        (["tr_im.nii.gz"], "tr_im.nii.gz: expected its mask in tr_mask.nii.gz"),
        (["tr_mask.nii.gz"], "tr_mask.nii.gz: expected its image in tr_im.nii.gz"),
        (["rp_im/1.nii.gz"], "rp_msk: expected a folder"),
        (["rp_msk/1.nii.gz"], "rp_im: expected a folder"),
        (
            ["rp_im/1.nii.gz", "rp_im/2.nii.gz", "rp_msk/1.nii.gz"],
            "rp_im/2.nii.gz: expected its mask in rp_msk/",
        ),
        (["images/1.nii.gz"], "masks: expected a folder"),
        (["images/a.txt", "masks/a.txt"], "images: expected NIfTI files"),
        (["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"], "expected one channel"),
        (["imagesTr/a.nii.gz", "labelsTr/a.nii.gz"], "named <case>_0000"),
    ],
)
def test_folders_that_are_no_set(tmp_path, files, said):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    text = complaint(tmp_path)
    assert said in text and str(tmp_path) in text


def test_a_root_that_is_no_folder(tmp_path):
    assert "nothing of that name" in complaint(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    assert "got a file" in complaint(tmp_path / "file")


def test_a_set_whose_cache_key_cannot_be_made(tmp_path):
    write_set(tmp_path / "set")
    (tmp_path / "set" / IMAGE).unlink()
    (tmp_path / "set" / IMAGE).symlink_to("nowhere")
    assert IMAGE in complaint(tmp_path / "set", cache=tmp_path / "cache")
    assert IMAGE in complaint(tmp_path / "set")
