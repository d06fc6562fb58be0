"""Networks against a data folder: which slices are predicted by whom, and brought back to which place."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asegnet_fast.data import DataError
from asegnet_fast.data.notes import Notes
from asegnet_fast.evaluation import Conventions, belongs_to_run, gather, measure_volumes
from tests.data_sets import SANE, blob_mask, write

SIZE = 40


class Bright:
    """Predicts its label where a slice is bright, moved by some pixels to the patient's left."""

    size, intensity = SIZE, "raw"

    def __init__(self, shift=0, values=(1,)):
        self.shift, self.values, self.seen = shift, values, 0

    def __call__(self, images, shape, attention):
        assert images.shape[1:] == (SIZE, SIZE) and shape == (SIZE, SIZE) and not attention
        for image in images:
            self.seen += 1
            yield SimpleNamespace(
                labels=torch.from_numpy(np.roll(image > 127, self.shift, 1).astype(np.uint8))
            )


@pytest.fixture
def data(tmp_path):
    """Two volumes, stored along different axes, bright where the lesion is."""
    mask = blob_mask((SIZE, SIZE, 6))
    turned = np.diag([1.0, 1, 1, 1])
    turned[:3, :3] = SANE[:3, [2, 0, 1]]
    for name, data, affine in (("a", mask, SANE), ("b", np.transpose(mask, (2, 0, 1)), turned)):
        write(tmp_path / "images" / f"{name}.nii.gz", data.astype(np.int16) * 100, affine)
        write(tmp_path / "masks" / f"{name}.nii.gz", data, affine)
    return tmp_path


def listed(*places):
    """Test slices of folds as `fold_slices` gives them, from (file, index, patient) of each."""
    return [[{"file": f"images/{f}.nii.gz", "index": i, "group": g} for f, i, g in part] for part in places]


def test_whole_volumes(data):
    record = gather("net", measure_volumes(data, {None: Bright(shift=2)}, select="all"))
    assert [(case.name, case.indices, case.folds) for case in record.cases] == [
        (f"images/{name}.nii.gz", tuple(range(6)), None) for name in "ab"
    ]
    # The lesion is 10 pixels wide, and 2 pixels are 1.6 mm, whichever way the file is stored.
    assert record.values("dice", Conventions())[:, 0] == pytest.approx([0.8, 0.8])
    assert record.values("hd95", Conventions())[:, 0] == pytest.approx([1.6, 1.6])
    lesion = gather("net", measure_volumes(data, {None: Bright()}))
    assert [case.indices for case in lesion.cases] == [(1, 2, 4)] * 2
    assert lesion.values("dice", Conventions()).tolist() == [[1], [1]]


def test_each_fold_predicts_its_own_test_slices(data):
    slices = listed(
        [("a", 1, "P"), ("a", 2, "P")], [("a", 4, "Q"), ("b", 1, "Q"), ("b", 2, "Q"), ("b", 4, "Q")]
    )
    right, wrong = Bright(), Bright(shift=20)
    record = gather("row", measure_volumes(data, {0: right, 1: wrong}, slices))
    assert [(case.name, case.unit, case.folds) for case in record.cases] == [
        ("images/a.nii.gz [P]", "P", (0, 0)),
        ("images/a.nii.gz [Q]", "Q", (1,)),
        ("images/b.nii.gz", "Q", (1, 1, 1)),
    ]
    assert record.values("dice", Conventions())[:, 0].tolist() == [1, 0, 0]
    assert (right.seen, wrong.seen) == (2, 4)
    # One fold's network alone: the other's slices are not measured.
    (case,) = measure_volumes(data, {0: right}, slices)
    assert case.indices == (1, 2)


def test_slices_without_a_lesion_follow_their_file(data):
    slices = listed([("a", 1, "P"), ("a", 2, "P"), ("a", 4, "P")], [("b", 1, "Q"), ("b", 2, "R")])
    notes = Notes()
    cases = list(measure_volumes(data, {0: Bright(), 1: Bright()}, slices, select="all", notes=notes))
    assert [(case.unit, case.indices) for case in cases] == [("P", tuple(range(6))), ("Q", (1,)), ("R", (2,))]
    assert notes.lines(2) == [
        "images/b.nii.gz: slices of no fold, in files of several folds or patients, are left out"
    ]


def test_labels_of_the_network(data):
    write(data / "masks" / "a.nii.gz", blob_mask((SIZE, SIZE, 6), label=7), SANE)
    record = gather("net", measure_volumes(data, {None: Bright(values=(7,))}, labels="keep"))
    assert record.labels == (1, 7)
    assert record.values("dice", Conventions()).tolist() == [[1, 1], [0, 0]]


def test_whose_data_they_are(data):
    assert belongs_to_run(data, listed([("a", 1, "P")]))
    assert not belongs_to_run(data, listed([("z", 1, "P")]))


def test_patients_and_bad_masks(data):
    table = data / "groups.csv"
    table.write_text("file,first,last,patient\nimages/a.nii.gz,0,5,P\nimages/b.nii.gz,0,5,P\n")
    record = gather("net", measure_volumes(data, {None: Bright()}, groups=table))
    assert record.units() == ["P", "P"]
    write(data / "masks" / "a.nii.gz", blob_mask((SIZE, SIZE, 5)))
    with pytest.raises(DataError, match="expected the shape of"):
        list(measure_volumes(data, {None: Bright()}))
