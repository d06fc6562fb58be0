"""Folds: what each split promises, the leak, and the file they are kept in."""

import json
import re

import numpy as np
import pytest

from asegnet_fast.data import DataError, SliceSet, load_folds, make_folds, save_folds


def slice_set(sizes=(30, 7, 12, 9, 22, 5, 15), fingerprint="f" * 64, step=1) -> SliceSet:
    """A set with so many slices of each file, every `step`-th index of it."""
    sources = tuple(f"case{k}.nii.gz" for k, n in enumerate(sizes) for _ in range(n))
    indices = tuple(step * i for n in sizes for i in range(n))
    blank = np.zeros((len(sources), 1, 1), np.uint8)
    return SliceSet(blank, blank, sources, indices, sources, 2, (1,), (), fingerprint)


@pytest.mark.parametrize("split", ["patient", "slice"])
@pytest.mark.parametrize("k", [2, 3, 5, 7])
def test_every_slice_is_tested_once_and_never_trained_on_then(split, k):
    slices = slice_set()
    folds = make_folds(slices, k, split, seed=3)
    assert sorted(i for part in folds.test for i in part) == list(range(len(slices)))
    for fold in range(k):
        train, test = folds.train(fold), folds.test_indices(fold)
        assert train.dtype == test.dtype == np.int64
        assert len(test) and np.array_equal(np.sort(np.concatenate([train, test])), np.arange(len(slices)))
        if split == "patient":
            assert not {slices.groups[i] for i in train} & {slices.groups[i] for i in test}


def test_folds_are_balanced():
    slices = slice_set(sizes=tuple(range(5, 45)))
    for seed in range(5):
        sizes = [len(part) for part in make_folds(slices, 5, "patient", seed).test]
        assert max(sizes) - min(sizes) <= 10
        sizes = [len(part) for part in make_folds(slices, 5, "slice", seed).test]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("split", ["patient", "slice"])
def test_the_seed_decides(split):
    slices = slice_set(sizes=(6,) * 12)
    assert make_folds(slices, 4, split, 1) == make_folds(slices, 4, split, 1)
    assert make_folds(slices, 4, split, 1).test != make_folds(slices, 4, split, 2).test


def test_leak_of_the_two_splits():
    slices = slice_set(sizes=(100, 120, 80, 90, 110))
    assert make_folds(slices, 5, "patient").leak_percent == 0
    # Both neighbours fall into the tested fold with probability 1/25.
    assert 92 < make_folds(slices, 5, "slice").leak_percent < 99
    assert make_folds(slice_set(sizes=(100, 120), step=2), 5, "slice").leak_percent == 0


def test_leak_of_a_known_case():
    slices = slice_set(sizes=(4, 2))
    folds = make_folds(slices, 2, "slice", seed=0)
    fold_of = {i: k for k, part in enumerate(folds.test) for i in part}
    neighbours = {0: [1], 1: [0, 2], 2: [1, 3], 3: [2], 4: [5], 5: [4]}
    leaked = [i for i, near in neighbours.items() if any(fold_of[n] != fold_of[i] for n in near)]
    assert folds.leak_percent == pytest.approx(100 * len(leaked) / 6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 1}, "folds: expected 2 to 7, .* got 1"),
        ({"k": 8}, "folds: expected 2 to 7, the number of groups .* got 8"),
        ({"k": 101, "split": "slice"}, "folds: expected 2 to 100, the number of slices .* got 101"),
        ({"split": "patients"}, "split: expected one of patient, slice, got 'patients'"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
    ],
)
def test_options_out_of_range_name_the_option(options, said):
    with pytest.raises(ValueError, match=said):
        make_folds(slice_set(), **options)


def test_a_fold_that_does_not_exist():
    folds = make_folds(slice_set(), 5)
    for fold in (-1, 5):
        with pytest.raises(ValueError, match="fold: expected 0 to 4"):
            folds.train(fold)
        with pytest.raises(ValueError, match="fold: expected 0 to 4"):
            folds.test_indices(fold)


@pytest.mark.parametrize("split", ["patient", "slice"])
def test_the_file_brings_the_folds_back(tmp_path, split):
    slices = slice_set()
    folds = make_folds(slices, 5, split, seed=2)
    path = tmp_path / "folds.json"
    save_folds(path, folds, slices)
    assert load_folds(path, slices) == folds
    assert [entry.name for entry in tmp_path.iterdir()] == ["folds.json"]
    lines = path.read_text().splitlines()
    assert sum('"file": ' in line for line in lines) == len(slices)
    written = json.loads(path.read_text())
    assert (written["split"], written["k"], written["seed"]) == (split, 5, 2)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    slices = slice_set()
    with pytest.raises(DataError, match=r"folds.json: expected a place to write to"):
        save_folds(tmp_path / "file" / "folds.json", make_folds(slices), slices)


def _drop(content):
    content["folds"][1]["test"].pop()


def _double(content):
    content["folds"][1]["test"].append(content["folds"][0]["test"][0])


def _foreign(content):
    content["folds"][1]["test"][0]["index"] = 999


def _other_group(content):
    content["folds"][1]["test"][0]["group"] = "somebody"


def _move(content):
    content["folds"][1]["test"].append(content["folds"][0]["test"].pop())


def _empty(content):
    content["folds"][1]["test"] = []


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (_drop, "expected every slice once, case.*is in no fold"),
        (_double, "expected every slice once, case.* is in fold 0 and fold 1"),
        (_foreign, "expected slices of the set, fold 1 has case.* slice 999"),
        (_other_group, "expected group case.*, got somebody"),
        (_move, "expected whole groups under split patient, case.* is in fold 0 and fold 1"),
        (_empty, "expected test slices in every fold, fold 1 has none"),
        (lambda content: content.update(fingerprint="0" * 64), "other data, groups or options"),
        (lambda content: content.pop("fingerprint"), "expected a fingerprint"),
        (lambda content: content.update(k=4), "expected 4 folds, got 5"),
        (lambda content: content.update(k="5"), "expected k of 2 or more"),
        (lambda content: content.update(seed=None), "expected a whole number as seed"),
        (lambda content: content.update(split="both"), "expected split patient or slice"),
        (lambda content: content.update(format="x"), "expected a file of format"),
        (lambda content: content.update(folds=3), "expected 5 folds"),
        (lambda content: content["folds"][0].update(fold=3), "expected fold 0 with a list"),
        (lambda content: content["folds"][0].update(test="all"), "expected fold 0 with a list"),
        (lambda content: content["folds"][0]["test"].append(7), "expected slices as file, index, group"),
        (lambda content: content["folds"][0]["test"][0].update(index=True), "expected slices as file"),
        (lambda content: content["folds"][0]["test"][0].update(file=["a"]), "expected slices as file"),
    ],
)
def test_a_tampered_file_is_one_line(tmp_path, tamper, said):
    slices = slice_set()
    path = tmp_path / "folds.json"
    save_folds(path, make_folds(slices, 5), slices)
    content = json.loads(path.read_text())
    tamper(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        load_folds(path, slices)
    text = str(caught.value)
    assert "folds.json" in text and "\n" not in text and re.search(said, text)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100000, b"null"])
def test_a_file_that_is_no_folds_file(tmp_path, content):
    path = tmp_path / "folds.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"folds\.json: expected a"):
        load_folds(path, slice_set())


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json: expected a folds file"):
        load_folds(tmp_path / "absent.json", slice_set())


def test_slices_may_be_moved_between_folds_by_hand_under_slice(tmp_path):
    slices = slice_set()
    path = tmp_path / "folds.json"
    save_folds(path, make_folds(slices, 5, "slice"), slices)
    content = json.loads(path.read_text())
    _move(content)
    path.write_text(json.dumps(content))
    assert [len(part) for part in load_folds(path, slices).test] == [19, 21, 20, 20, 20]
