"""Which checkpoints `predict` takes, and that every other one is refused in one line that names it."""

import shutil
from pathlib import Path

import pytest
import torch

from asegnet_fast.errors import InputError
from asegnet_fast.inference import load_ensemble
from tests.predictions import checkpoint, one, predict, values, volume
from tests.program_runs import finished_run


def complaint(*places: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_ensemble(places)
    text = str(caught.value)
    assert "\n" not in text and "expected" in text and len(text) < 500
    return text


def test_a_row_of_a_run_stands_for_its_folds(tmp_path):
    row = finished_run() / "a_segnet--dl"
    folds = [row / f"fold{k}" / "checkpoint_last.pt" for k in range(2)]
    by_row, by_files, by_folders = (
        load_ensemble(places) for places in ([row], folds, [file.parent for file in folds])
    )
    assert [m.path for m in by_row.members] == [m.path for m in by_files.members] == folds
    assert [m.sha256 for m in by_row.members] == [m.sha256 for m in by_folders.members]
    assert [(m.row, m.fold, m.epoch) for m in by_row.members] == [
        ("a_segnet--dl", 0, 3),
        ("a_segnet--dl", 1, 3),
    ]
    assert by_row.size == 32 and by_row.values == (1,) and by_row.gates == 2


def test_networks_of_other_kinds_may_vote_together(tmp_path):
    ensemble = load_ensemble(
        [checkpoint(tmp_path / "a.pt"), checkpoint(tmp_path / "b.pt", model="segnet", seed=1)]
    )
    image = volume(tmp_path / "ct.nii.gz")
    predict(ensemble, image, tmp_path / "out")
    assert values(tmp_path / "out" / "ct.nii.gz").any()
    with pytest.raises(InputError, match="--attention: expected networks with the same number of gates"):
        predict(ensemble, image, tmp_path / "out2", attention=True)


def test_what_a_folder_does_not_hold(tmp_path):
    assert "none in this folder" in complaint(tmp_path)
    assert "name one of its rows: a_segnet--dl, " in complaint(finished_run())
    shutil.copytree(finished_run() / "segnet--dl", tmp_path / "row")
    (tmp_path / "row" / "fold1" / "checkpoint_last.pt").unlink()
    assert "row: expected the checkpoints of 2 folds, got none of fold 1" in complaint(tmp_path / "row")


def test_no_checkpoint_at_all(tmp_path):
    assert "got none" in complaint()
    assert "no.pt: expected a checkpoint, got nothing" in complaint(tmp_path / "no.pt")


def test_the_same_checkpoint_twice(tmp_path):
    first = checkpoint(tmp_path / "a.pt")
    shutil.copy(first, tmp_path / "b.pt")
    assert "b.pt: expected each checkpoint once, got the same as" in complaint(first, tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": 64}, "expected slices of 32 pixels as"),
        ({"intensity": "hu"}, "expected intensity auto as"),
        ({"classes": 3}, r"expected the classes (1,) as"),
        ({"labels": "keep", "content": {"label_values": [2]}}, "got the classes (2,)"),
    ],
)
def test_checkpoints_that_do_not_fit_together(tmp_path, changes, said):
    text = complaint(checkpoint(tmp_path / "a.pt"), checkpoint(tmp_path / "b.pt", seed=1, **changes))
    assert "b.pt: " in text and said in text


def _state(**changes):
    def state(path: Path) -> dict:
        state = torch.load(checkpoint(path), weights_only=True)["state_dict"]
        for name, value in changes.items():
            key = next(key for key in state if key.endswith(name.replace("__", ".")))
            if value is None:
                del state[key]
            else:
                state[key] = value(state[key])
        return {"content": {"state_dict": state}}

    return state


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda _: {"content": {"model": "unet"}}, "expected a network and its weights"),
        (lambda _: {"content": {"model": ["a_segnet"]}}, "expected a network and its weights"),
        (
            lambda _: {"content": {"network": {"in_channels": 1, "depth": 4}}},
            "expected a network and its weights",
        ),
        (
            lambda _: {"content": {"network": {"widths": (10**9, 10**9), "convs": (1, 1)}}},
            "expected a network and its weights",
        ),
        (lambda _: {"content": {"network": 5}}, "expected a network and its weights"),
        (lambda _: {"content": {"state_dict": [1, 2]}}, "expected a network and its weights"),
        (_state(psi__bias=None), "expected a network and its weights"),
        (_state(psi__bias=lambda t: t.repeat(2)), "expected a network and its weights"),
        (_state(psi__bias=lambda t: t.double()), "expected a network and its weights"),
        (_state(psi__bias=lambda t: t * float("nan")), "expected finite weights"),
        (lambda _: {"content": {"normalisation": {"mean": 1.0}}}, "expected mean and deviation"),
        (lambda _: {"content": {"normalisation": {"mean": 1.0, "sd": 0.0}}}, "expected mean and deviation"),
        (lambda _: {"content": {"normalisation": "none"}}, "expected mean and deviation"),
        (lambda _: {"size": 10**9}, "expected settings with a size"),
        (lambda _: {"size": 2}, "expected slices of at least 4 pixels"),
        (lambda _: {"intensity": "mr"}, "expected settings with a size"),
        (lambda _: {"content": {"epoch": "three"}}, "expected a number of epochs"),
        (
            lambda _: {"content": {"label_values": ["x"]}, "labels": "keep"},
            "expected whole numbers as labels",
        ),
        (
            lambda _: {"content": {"label_values": [-1]}, "labels": "keep"},
            "expected whole numbers as labels",
        ),
    ],
)
def test_contents_that_make_no_network(tmp_path, damage, said):
    path = checkpoint(tmp_path / "net.pt", **damage(tmp_path / "net.pt"))
    text = complaint(path)
    assert "net.pt: " in text and said in text


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\3\4 nearly a zip"])
def test_files_that_are_none(tmp_path, content):
    (tmp_path / "net.pt").write_bytes(content)
    assert "net.pt: expected" in complaint(tmp_path / "net.pt")


def test_files_of_other_programs(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "net.pt")
    assert "net.pt: expected a checkpoint written by asegnet-fast" in complaint(tmp_path / "net.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")  # would run code when loaded
    assert "module.pt: expected a whole checkpoint" in complaint(tmp_path / "module.pt")


def test_a_training_that_did_not_end_is_noted(tmp_path):
    report = predict(one(tmp_path, content={"epoch": 2}), volume(tmp_path / "ct.nii.gz"), tmp_path / "out")
    assert any("net.pt: trained for 2 of 3 epochs" in note for note in report["notes"])
