"""Every option of every command with values that cannot be right: one line that names it, exit status 2.

Commands and options are found in the program itself, so a new one is walked without an entry here; an entry in `VALID`
makes the walk reach the option's own check, and one in `WRONG` says what is wrong for a text.
"""

import functools
import tempfile
from pathlib import Path

import pytest
import typer

import asegnet_fast.cli as cli
from tests.predictions import checkpoint, volume
from tests.program_runs import TINY, data_folder, snapshot

#: What would be a right call, to which one wrong option is added; `files` are in the folder.
VALID = {
    "crossval": ["--data", data_folder(), "--out", "run", *TINY],
    "predict": ["--input", "ct.nii", "--out", "out", "--checkpoint", "net.pt", "--device", "cpu"],
    "tune": ["--data", data_folder(), "--out", "run", *TINY, "--epochs", "2"],
    "demo": ["--out", "run"],
    "evaluate": ["--predictions", "ct.nii", "--truth", "ct.nii", "--out", "out"],
}
#: What is wrong for each kind of value, by what --help shows for it.
WHOLE = ["x", "", "1.5", "-1"]
KINDS = {"N": WHOLE, "K": WHOLE, "X": ["x", "", "nan", "-1"], "|": ["nonsense", ""]}
KINDS["MM"] = KINDS["X"]
KINDS["LOW:HIGH"] = ["x", "", "0.3:0.1", "nan", "-1:2", "1:2:3"]
#: What is wrong for a text or a path; any other's is "" and a place that is not there.
WRONG = {
    "out": ["", "file/out"],
    "cache": ["", "file/cache"],
    "models": ["", "unet"],
    "augment": ["nonsense"],
    "empty": ["", "dice=2", "volume=nan"],
    "losses": ["", "dice", "tl:1"],
    "widths": ["", "x", "0", "4,-8"],
    "convs": ["", "x", "0", "1,-1"],
    "device": ["", "tpu", "cuda:x"],
}


#: Built once; `cli.app` would build every option of every command anew for each call.
PROGRAM = typer.main.get_command(cli.app)


def commands() -> dict:
    return PROGRAM.commands


def wrong_calls() -> list:
    """(command, option, wrong value) of every option; None as value: the option without one."""
    calls = []
    for name, command in commands().items():
        for parameter in command.params:
            if not parameter.opts[0].startswith("-") or parameter.name == "help":
                continue
            if parameter.is_flag:
                values = ["yes"]
            elif parameter.metavar in KINDS or "|" in (parameter.metavar or ""):
                values = [*KINDS.get(parameter.metavar, KINDS["|"]), None]
            else:
                values = [*WRONG.get(parameter.name, ["", "no/such/place"]), None]
            for option in (*parameter.opts, *parameter.secondary_opts):
                calls += [
                    pytest.param(name, option, value, id=f"{name} {option} {value!s:.9}") for value in values
                ]
    return calls


@functools.cache
def files() -> dict[str, bytes]:
    """What lies in the folder of a call."""
    with tempfile.TemporaryDirectory() as name:
        volume(Path(name) / "ct.nii")
        checkpoint(Path(name) / "net.pt")
        (Path(name) / "file").write_bytes(b"mine")
        return snapshot(Path(name))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "app", PROGRAM)
    for name, content in files().items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def refused(folder, capsys, *arguments) -> str:
    """The one line of a call that is refused and leaves everything as it was."""
    assert cli.main(arguments) == 2, arguments
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("asegnet-fast: "), lines
    assert snapshot(folder) == files()
    return lines[0]


@pytest.mark.parametrize(("command", "option", "value"), wrong_calls())
def test_a_wrong_value_is_one_line_that_names_the_option(command, option, value, folder, capsys):
    valid = VALID.get(command, [])
    given = (
        [option] if value is None else [f"{option}={value}"] if option.startswith("--") else [option, value]
    )
    line = refused(folder, capsys, command, *valid, *given)
    if valid:
        long = next(p.opts[0] for p in commands()[command].params if option in (*p.opts, *p.secondary_opts))
        assert option in line or long in line or (value and value in line), line


@pytest.mark.parametrize("command", list(commands()))
def test_what_no_command_takes(command, folder, capsys):
    assert "--nonsense" in refused(folder, capsys, command, *VALID.get(command, []), "--nonsense")
    refused(folder, capsys, command, *VALID.get(command, []), "surplus", "surplus")


def test_no_such_command(folder, capsys):
    assert "nonsense" in refused(folder, capsys, "nonsense")


@pytest.mark.parametrize("command", list(commands()))
def test_help_is_complete_and_fits_a_terminal(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 80
    for parameter in commands()[command].params:
        assert parameter.help, f"{command} {parameter.name} has no help"
