"""`asegnet-fast predict` as a user types it: files, folders, refusals, interruptions."""

import json
import shutil

import matplotlib.image
import numpy as np
import pytest

import asegnet_fast.cli as cli
from asegnet_fast.report.preview import _painted
from tests.data_sets import write
from tests.predictions import checkpoint, values, volume
from tests.program_runs import data_folder, finished_run, snapshot


@pytest.fixture
def net(tmp_path):
    return str(checkpoint(tmp_path / "net.pt"))


def run(*arguments) -> int:
    return cli.main(["predict", "--device", "cpu", *map(str, arguments)])


def refused(capsys, *arguments) -> str:
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("asegnet-fast: ")
    return lines[0]


def names(folder) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_folder_by_a_row_of_a_run_with_everything(tmp_path, capsys):
    images = data_folder() + "/rp_im"
    row = finished_run() / "a_segnet--dl"
    assert (
        run("-i", images, "-o", tmp_path, "--checkpoint", row, "--probabilities", "--attention", "--overlay")
        == 0
    )
    cases = ("1", "2", "3")
    expected = {f"{case}{suffix}" for case in cases for suffix in (".nii.gz", ".json", ".png")}
    expected |= {f"probabilities/{case}.nii.gz" for case in cases}
    expected |= {f"attention/{case}_gate{k}.nii.gz" for case in cases for k in (1, 2)}
    assert names(tmp_path) == expected
    printed = capsys.readouterr()
    assert not printed.err and "2 checkpoints" in printed.out and "1.nii.gz: lesion" in printed.out
    assert "━" not in printed.out and "\r" not in printed.out  # no bars where there is no terminal
    report = json.loads((tmp_path / "1.json").read_text())
    assert [entry["fold"] for entry in report["checkpoints"]] == [0, 1]
    assert report["environment"]["device"] == "cpu" and report["settings"]["white"] == 600
    assert matplotlib.image.imread(tmp_path / "1.png").std() > 0.1


def test_checkpoints_may_follow_each_other(tmp_path, net):
    other = checkpoint(tmp_path / "other.pt", seed=1)
    image = volume(tmp_path / "in" / "ct.nii")
    assert run("-i", image, "-o", tmp_path / "a", "--checkpoint", net, other) == 0
    assert run("-i", image, "-o", tmp_path / "b", "--checkpoint", net, "--checkpoint", other) == 0
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_one_volume_into_a_file_of_a_chosen_name(tmp_path, net):
    image = volume(tmp_path / "ct.nii.gz")
    assert run("-i", image, "-o", tmp_path / "deep" / "mine.nii", "--checkpoint", net, "--overlay") == 0
    assert names(tmp_path / "deep") == {"mine.nii", "mine.json", "mine.png"}
    assert values(tmp_path / "deep" / "mine.nii").shape == (40, 36, 6)


def test_nnunets_channel_is_left_out_of_the_name(tmp_path, net):
    volume(tmp_path / "imagesTs" / "case_0000.nii.gz")
    assert run("-i", tmp_path / "imagesTs", "-o", tmp_path / "out", "--checkpoint", net) == 0
    assert names(tmp_path / "out") == {"case.nii.gz", "case.json"}


def test_a_bad_volume_does_not_stop_the_others(tmp_path, net, capsys):
    for name in "ac":
        volume(tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "in" / "b.nii.gz").write_bytes((tmp_path / "in" / "a.nii.gz").read_bytes()[:-50])
    write(tmp_path / "in" / "d.nii", np.full((8, 8, 3), np.nan, np.float32))
    (tmp_path / "in" / "notes.txt").write_text("no volume")
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--checkpoint", net, "--probabilities") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "b.nii.gz: expected" in lines[0] and "d.nii: expected finite" in lines[1]
    assert lines[2] == "asegnet-fast: 2 of 4 volumes could not be predicted"
    kept = {"a.nii.gz", "a.json", "c.nii.gz", "c.json", "probabilities/a.nii.gz", "probabilities/c.nii.gz"}
    assert names(tmp_path / "out") == kept


def test_results_are_replaced_only_when_asked(tmp_path, net, capsys):
    image = volume(tmp_path / "ct.nii.gz")
    command = ["-i", image, "-o", tmp_path / "out", "--checkpoint", net]
    assert run(*command) == 0
    before = snapshot(tmp_path / "out")
    assert "--out: expected no " in refused(capsys, *command) and snapshot(tmp_path / "out") == before
    (tmp_path / "out" / "ct.nii.gz").write_bytes(b"old")
    assert run(*command, "--overwrite") == 0
    assert snapshot(tmp_path / "out") == before


def test_an_input_is_never_written_over(tmp_path, net, capsys):
    image = volume(tmp_path / "ct.nii.gz")
    before = snapshot(tmp_path)
    for out in (tmp_path, image):
        said = refused(capsys, "-i", image, "-o", out, "--checkpoint", net, "--overwrite")
        assert "expected another place than the input's" in said
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-i", "none.nii"], "--input: expected a NIfTI file or a folder of them, got nothing there"),
        (["-i", "net.pt"], "--input: expected a file ending in .nii.gz or .nii"),
        (["-i", "empty"], "--input: expected a folder with NIfTI files, got none"),
        (["-i", "twice"], "--input: expected one file a case, got a.nii and a_0000.nii"),
        (["-i", "two", "-o", "out.nii.gz"], "--out: expected a folder for 2 volumes"),
        (["-o", "net.pt/out"], "--out: expected a folder, got a path through a file"),
        (["-o", "net.pt"], "--out: expected a folder, got a file (net.pt)"),
        (["--lung-mask", "none.nii"], "--lung-mask: expected the file of ct.nii's lung"),
        (["-i", "two", "--lung-mask", "ct.nii"], "--lung-mask: expected a folder"),
        (["-i", "two", "--lung-mask", "empty"], "--lung-mask: expected a mask for a.nii in empty, got none"),
        (["--checkpoint", "none.pt"], "none.pt: expected a checkpoint, got nothing"),
        (["--checkpoint", "net.pt"], "net.pt: expected each checkpoint once"),
        (["--batch-size", "0"], "--batch-size: expected a whole number >= 1, got 0"),
        (["--device", "cuda:99"], "--device: expected a device that is there"),
        (["--precision", "fp8"], "--precision: expected one of fp32, bf16"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_anything_is_written(
    tmp_path, net, capsys, monkeypatch, options, said
):
    monkeypatch.chdir(tmp_path)
    volume(tmp_path / "ct.nii")
    (tmp_path / "empty").mkdir()
    for name in ("two/a.nii", "two/b.nii", "twice/a.nii", "twice/a_0000.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "ct.nii", tmp_path / name)
    before = snapshot(tmp_path)
    given = {"-i": "ct.nii", "-o": "out"}
    rest = options
    if options[0] in given:
        given |= dict(zip(options[::2], options[1::2], strict=True))
        rest = []
    arguments = [part for pair in given.items() for part in pair]
    assert said in refused(capsys, *arguments, "--checkpoint", net, *rest)
    assert snapshot(tmp_path) == before


def test_ctrl_c_leaves_no_file_half_written(tmp_path, net, monkeypatch, capsys):
    from asegnet_fast.training.progress import Reporter

    for name in "ab":
        volume(tmp_path / "in" / f"{name}.nii.gz", shape=(40, 36, 20))

    def stop(self, done, total, file):
        if file == "b.nii.gz" and done > 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Reporter, "slices", stop)
    command = ["-i", tmp_path / "in", "-o", tmp_path / "out", "--checkpoint", net, "--batch-size", "4"]
    assert run(*command, "--probabilities", "--overlay") == 130
    assert names(tmp_path / "out") == {"a.nii.gz", "a.json", "a.png", "probabilities/a.nii.gz"}
    assert "interrupted; 1 of 2 volumes are whole" in capsys.readouterr().out


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, net, monkeypatch, capsys):
    from asegnet_fast.data.stream import SliceWriter

    def full(self, slices):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SliceWriter, "write", full)
    image = volume(tmp_path / "ct.nii.gz")
    assert run("-i", image, "-o", tmp_path / "out", "--checkpoint", net) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "ct.nii.gz: No space left on device" in lines[0]
    assert not names(tmp_path / "out")


def test_the_picture_has_the_labels_in_colour():
    image = np.full((9, 9), 100, np.uint8)
    labels = np.zeros((9, 9), np.uint8)
    labels[2:7, 2:7] = 1
    labels[4:7, 4:7] = 2
    painted = _painted(image, labels)
    grey = (painted == painted[..., :1]).all(2)
    assert np.array_equal(grey, labels == 0) and (painted[grey] == 100).all()
    assert len({tuple(painted[2, 2]), tuple(painted[3, 3]), tuple(painted[4, 4]), tuple(painted[5, 5])}) == 4
