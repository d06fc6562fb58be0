"""Losses as spelled, settings as checked, and how a file and options combine."""

import math

import pytest

from asegnet_fast.training.config import TABLE1_LOSSES, Row, Settings, read_settings
from asegnet_fast.training.losses import Loss


def test_fractions_and_folder_names():
    loss = Loss.parse("ftl:0.3:7/10:4/3")
    assert (loss.alpha, loss.beta, loss.gamma) == (0.3, 0.7, 4 / 3)
    assert Row("a_segnet", loss).folder == "a_segnet--ftl-a0.3-b0.7-g1.3333"
    assert Row("segnet", Loss.parse("dl-literal")).folder == "segnet--dl-literal"


@pytest.mark.parametrize("numbers", ["x", "1/0", "5", "nan", "1e999999999"])
def test_wrong_numbers_say_what_was_expected(numbers):
    with pytest.raises(ValueError, match=r"expected .*gamma.*, got"):
        Loss.parse(f"ftl:0.3:0.7:{numbers}")


@pytest.mark.parametrize("text", ["dice", "tl", "tl:1", "tl:1:2:3", "tl:-1:2", "tl:0:0"])
def test_wrong_losses_say_what_was_expected(text):
    with pytest.raises(ValueError, match=r"expected .*, got"):
        Loss.parse(text)


def test_table1_has_the_papers_fourteen_rows():
    rows = Settings(data="d", out="o", losses=TABLE1_LOSSES).rows()
    assert len(rows) == 14
    assert all(row.paper() is not None for row in rows)
    best = next(row for row in rows if row.folder == "a_segnet--ftl-a0.3-b0.7-g1.3333")
    assert best.paper() == {"dice": 0.8961, "sensitivity": 0.9273, "specificity": 0.9951}


@pytest.mark.parametrize("text", ["ce", "gdl", "dl-literal", "tl:0.4:0.6", "ftl:0.3:0.7:2"])
def test_rows_the_paper_has_not(text):
    assert Row("segnet", Loss.parse(text)).paper() is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("folds", 1),
        ("lr", 0.0),
        ("lr", math.nan),
        ("momentum", 1.0),
        ("batch_size", -1),
        ("precision", "fp16"),
        ("models", ("unet",)),
        ("models", ()),
        ("losses", ("dl", "dl")),
        ("widths", (8, 0)),
        ("inner_validation", 0.6),
        ("seed", -1),
        ("epochs", 10**7),
        ("size", 5000),
        ("cache", ""),
    ],
)
def test_settings_out_of_range_name_the_option(field, value):
    with pytest.raises(ValueError, match="--" + field.replace("_", "-")):
        Settings(data="d", out="o", **{field: value})


def test_options_override_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: d\nepochs: 7\nbatch-size: 3\nlr: 1e-2\nlosses: [dl, 'tl:0.3:0.7']\nwidths: '8,16'\n"
    )
    settings = read_settings(file, {"out": "o", "epochs": 9, "lr": None})
    assert (settings.epochs, settings.batch_size, settings.lr) == (9, 3, 0.01)
    assert settings.losses == ("dl", "tl:0.3:0.7")
    assert settings.widths == (8, 16)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", "--epoch: expected one of the known options"),
        ("epochs: many", "--epochs: expected a whole number, got 'many'"),
        ("epochs: 2.5", "--epochs: expected a whole number"),
        ("epochs: 0", "--epochs: expected a whole number from 1 to 1000000, got 0"),
        ("decoder-relu: 3", "--decoder-relu: expected true or false"),
        ("losses: [dl, xx]", "--losses: expected ce"),
        ("{", "expected YAML"),
        ("data: 2020-13-45", "expected YAML"),
        ("[" * 3000, "expected YAML"),
        ("seed: 1" + "0" * 400, "--seed: expected a whole number"),
        ("batch-size: 2\nbatch_size: 3", "--batch-size: expected each option once"),
        ("[1]", "expected option names"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, said):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"run\.yaml") as caught:
        read_settings(file, {"data": "d", "out": "o"})
    assert said in str(caught.value)


def test_data_and_out_are_needed():
    with pytest.raises(ValueError, match="--data: expected a folder, got nothing"):
        read_settings(None, {"out": "o"})


def test_table1_and_losses_exclude_each_other():
    with pytest.raises(ValueError, match="--table1"):
        read_settings(None, {"data": "d", "out": "o", "losses": "dl", "table1": True})
