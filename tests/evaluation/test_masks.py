"""Masks of any tool: matched, turned to one grid, measured case by case."""

import nibabel
import numpy as np
import pytest

from asegnet_fast.data import DataError
from asegnet_fast.data.notes import Notes
from asegnet_fast.errors import InputError
from asegnet_fast.evaluation import Conventions, gather, match_masks, measure_masks
from tests.data_sets import SANE, blob_mask, write

DEFAULT = Conventions()


def measured(tmp_path, **options):
    return list(measure_masks(match_masks(tmp_path / "truth", tmp_path / "mine"), **options))


def pair(tmp_path, prediction, truth, affine=SANE, truth_affine=SANE, name="a.nii.gz"):
    write(tmp_path / "mine" / name, prediction, affine)
    write(tmp_path / "truth" / name, truth, truth_affine)


def reoriented(data, affine, axes):
    """The same voxels in the same places, stored along other axes."""
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(data, affine))
    turn = nibabel.orientations.axcodes2ornt(axes)
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), turn)
    )
    return np.asarray(turned.dataobj), turned.affine


def test_a_shifted_mask_by_hand(tmp_path):
    truth = blob_mask()  # 10 x 14 pixels of 0.8 mm in slices 1, 2 and 4, which lie 5 mm apart
    pair(tmp_path, np.roll(truth, 2, axis=0), truth)
    (case,) = measured(tmp_path)
    record = gather("mine", [case])
    assert record.values("dice", DEFAULT)[0, 0] == pytest.approx(0.8)
    assert record.values("truth_volume", DEFAULT)[0, 0] == pytest.approx(3 * 140 * 0.8 * 0.8 * 5 / 1000)
    assert record.values("volume_error", DEFAULT)[0, 0] == 0
    assert record.values("hd95", DEFAULT)[0, 0] == pytest.approx(1.6)
    assert case.indices == tuple(range(6)) and case.counts[:, 0, 0].tolist() == [0, 112, 112, 0, 112, 0]
    # Slices without a lesion: Dice 1, distance undefined.
    assert record.image_values("dice", DEFAULT)[:, 0] == pytest.approx([1, 0.8, 0.8, 1, 0.8, 1])
    assert np.isnan(record.image_values("hd95", DEFAULT)[[0, 3, 5], 0]).all()
    lesion = gather("mine", measured(tmp_path, select="lesion"))
    assert lesion.cases[0].indices == (1, 2, 4)
    assert lesion.image_values("hd95", DEFAULT)[:, 0] == pytest.approx([1.6] * 3)


def test_a_missed_and_an_invented_lesion_cost_the_diagonal(tmp_path):
    truth = blob_mask()
    pair(tmp_path, np.zeros_like(truth), truth, name="missed.nii.gz")
    pair(tmp_path, truth, np.zeros_like(truth), name="invented.nii.gz")
    record = gather("mine", measured(tmp_path))
    diagonal = np.linalg.norm([40 * 0.8, 36 * 0.8, 6 * 5])
    assert record.values("hd95", DEFAULT)[:, 0] == pytest.approx([diagonal] * 2)
    assert record.values("surface_dice", DEFAULT)[:, 0].tolist() == [0, 0]
    assert record.values("volume_error_percent", DEFAULT)[:, 0] == pytest.approx([np.nan, -100], nan_ok=True)
    assert record.image_values("hd95", DEFAULT)[1, 0] == pytest.approx(np.hypot(40 * 0.8, 36 * 0.8))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SPL", "AIR"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_orientation_and_number_type_change_nothing(tmp_path, axes, kind):
    oblique = SANE.copy()
    oblique[:3, :3] = SANE[:3, :3] @ [[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]]
    truth = blob_mask()
    truth[3:6, 30, 2] = 1
    prediction = np.roll(truth, (1, 2, 1), axis=(0, 1, 2))
    pair(tmp_path, prediction, truth, oblique, oblique)
    (straight,) = measured(tmp_path)
    data, affine = reoriented(prediction, oblique, axes)
    write(tmp_path / "mine" / "a.nii.gz", data.astype(kind), affine)
    (turned,) = measured(tmp_path)
    assert np.array_equal(turned.counts, straight.counts)
    assert turned.space.volume == pytest.approx(straight.space.volume)
    # The truth may be the one that is turned, too.
    write(tmp_path / "truth" / "a.nii.gz", *reoriented(truth, oblique, axes))
    (both,) = measured(tmp_path)
    assert both.space.volume == pytest.approx(straight.space.volume)
    assert both.counts.sum(0).tolist() == straight.counts.sum(0).tolist()


def test_labels_kept_apart_have_a_place_in_every_case(tmp_path):
    first, second = blob_mask(label=1), blob_mask(label=4)
    first[30:35, 30:35, 2] = 4
    pair(tmp_path, first, first, name="one.nii.gz")
    pair(tmp_path, np.zeros_like(second), second, name="two.nii.gz")
    record = gather("mine", measured(tmp_path, labels="keep"))
    assert record.labels == (1, 4)
    assert record.values("dice", DEFAULT).tolist() == [[1, 1], [1, 0]]
    assert record.counts().sum(-1).tolist() == [[first.size] * 2] * 2
    merged = gather("mine", measured(tmp_path))
    assert merged.labels == (1,) and merged.values("dice", DEFAULT).tolist() == [[1], [0]]


def test_patients_of_one_file_are_cases_of_their_own(tmp_path):
    truth = blob_mask()
    pair(tmp_path, truth, truth)
    pair(tmp_path, truth, truth, name="b.nii.gz")
    table = tmp_path / "groups.csv"
    table.write_text("file,first,last,patient\na.nii.gz,0,2,P\na.nii.gz,3,5,Q\nb.nii.gz,0,5,Q\n")
    record = gather("mine", measured(tmp_path, groups=table))
    assert [(case.name, case.unit, len(case.indices)) for case in record.cases] == [
        ("a [P]", "P", 3),
        ("a [Q]", "Q", 3),
        ("b", "Q", 6),
    ]
    # Another patient's slices are not there.
    assert [case.counts[:, 0, 0].sum() for case in record.cases] == [280, 140, 420]
    table.write_text("file,first,last,patient\na.nii.gz,0,2,P\n")
    with pytest.raises(DataError, match=r"expected a patient for every file, got none for b\.nii\.gz"):
        measured(tmp_path, groups=table)


def test_doubtful_millimetres_are_told(tmp_path):
    truth = blob_mask()
    for name in ("a.nii.gz", "b.nii.gz"):
        pair(tmp_path, truth, truth, np.eye(4), np.eye(4), name)
    notes = Notes()
    measured(tmp_path, notes=notes)
    (line,) = notes.lines(2, "true masks")
    assert line.startswith("all 2 true masks: the affine looks invented")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: (data[:-1], SANE), "expected the shape of"),
        (lambda data: (data, SANE + np.diag([0, 0, 0.5, 0])), "expected the affine of"),
        (lambda data: (data * 0.5, SANE), "expected whole labels from 0, got 0.5"),
        (lambda data: (data - 1.0, SANE), "expected whole labels from 0, got -1"),
        (lambda data: (data * np.float32(np.nan), SANE), "got values that are NaN"),
    ],
)
def test_a_prediction_that_cannot_be_measured(tmp_path, change, said):
    pair(tmp_path, *(blob_mask(),) * 2)
    data, affine = change(blob_mask().astype(np.float32))
    write(tmp_path / "mine" / "a.nii.gz", data, affine)
    with pytest.raises(DataError, match=said) as error:
        measured(tmp_path)
    assert "mine" in str(error.value) and "\n" not in str(error.value)


def test_names_are_matched(tmp_path):
    truth = blob_mask()
    pair(tmp_path, truth, truth)
    write(tmp_path / "truth" / "b.nii", truth)
    with pytest.raises(InputError, match=r"b\.nii: expected its prediction in .*mine, found none"):
        match_masks(tmp_path / "truth", tmp_path / "mine")
    write(tmp_path / "mine" / "b.nii.gz", truth)  # .nii against .nii.gz is one name
    (tmp_path / "mine" / "report.json").write_text("{}")
    assert [pair.name for pair in match_masks(tmp_path / "truth", tmp_path / "mine")] == ["a", "b"]
    single = match_masks(tmp_path / "truth" / "a.nii.gz", tmp_path / "mine" / "b.nii.gz")
    assert [pair.name for pair in single] == ["a"]
    with pytest.raises(InputError, match="--compare: expected a folder as --truth is, got a file"):
        match_masks(tmp_path / "truth", tmp_path / "mine" / "a.nii.gz", "--compare")
    write(tmp_path / "mine" / "c.nii.gz", truth)
    with pytest.raises(InputError, match=r"c\.nii\.gz: expected its truth"):
        match_masks(tmp_path / "truth", tmp_path / "mine")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="--truth: expected NIfTI files"):
        match_masks(tmp_path / "nothing", tmp_path / "mine")


def test_no_label_anywhere(tmp_path):
    nothing = np.zeros_like(blob_mask())
    pair(tmp_path, nothing, nothing)
    assert gather("mine", measured(tmp_path)).values("dice", DEFAULT).tolist() == [[1]]
    with pytest.raises(InputError, match="expected a label above 0"):
        gather("mine", measured(tmp_path, labels="keep"))


def test_real_masks(real_data):
    """A lesion mask of a real CT, and its 42 labels, shifted by two voxels along the first axis."""
    file = real_data / "ct_hu" / "example_seg.nii.gz"
    (case,) = measure_masks(match_masks(file, file), labels="keep")
    assert len(case.labels) > 20 and (case.space.volume == (0, 0, 1)).all()
    assert (case.counts[..., 1:3] == 0).all()
