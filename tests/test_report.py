"""The table of a run: its cells, its foot, and the files it is kept in."""

import csv
import io
import json
import shutil

import pytest
from rich.console import Console

from asegnet_fast.report.table import loss_label, markdown, percent, records, terminal_table, write_tables
from asegnet_fast.training.crossval import summarise_run
from tests.program_runs import finished_run


@pytest.fixture
def summary():
    return json.loads((finished_run() / "summary.json").read_text())


@pytest.fixture
def run_copy(tmp_path):
    shutil.copytree(finished_run(), tmp_path / "run")
    return tmp_path / "run"


def test_labels_and_percent():
    row = {"loss": "ftl", "alpha": 0.3, "beta": 0.7, "gamma": 4 / 3}
    assert loss_label(row) == "FTL α=0.3 β=0.7 γ=4/3"
    assert loss_label({"loss": "gdl", "alpha": None, "beta": None, "gamma": None}) == "generalised DL"
    assert percent(0.89614) == "89.61" and percent(None) == "–"


def test_markdown_puts_the_papers_numbers_beside_ours(summary):
    lines = markdown(summary).splitlines()
    line = next(line for line in lines if line.startswith("| A-SegNet") and "FTL" in line)
    found = [cell.strip() for cell in line.strip("|").split("|")]
    row = next(row for row in summary["rows"] if row["folder"].startswith("a_segnet--ftl"))
    assert found[2:8:2] == [percent(row[m]["pooled"]) for m in ("dice", "sensitivity", "specificity")]
    assert found[3:9:2] == ["89.61", "92.73", "99.51"]
    assert len({line.count("|") for line in lines[:6]}) == 1


def test_the_foot_tells_leak_and_floor(summary):
    text = markdown(summary)
    everywhere = percent(summary["trivial"]["lesion_everywhere"]["dice"]["pooled"])
    assert f"lesion everywhere has Dice {everywhere} pooled" in text
    assert "0.0 % of the test slices" in text
    leaky = markdown(summary | {"split": "slice", "leak_percent": 93.21})
    assert "leaky" in leaky and "93.2 % of the test slices" in leaky


def test_missing_rows_and_folds_are_told(summary):
    text = markdown(summary | {"folds": 5, "missing_rows": ["segnet--ce"]})
    assert "2 of 5" in text and "Rows with fewer than 5 folds, over fewer slices: segnet--dl (2)," in text
    assert "Rows with fewer" not in markdown(summary) and "Rows without a finished fold: segnet--ce" in text


def test_csv_holds_every_average(summary, run_copy):
    write_tables(summary, run_copy)
    with open(run_copy / "table1.csv", newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 4
    assert float(lines[0]["dice_pooled"]) == pytest.approx(
        100 * summary["rows"][0]["dice"]["pooled"], abs=1e-3
    )
    assert records(summary)[0]["sensitivity_paper"] == 86.3


def test_summary_is_rebuilt_from_the_folds(summary, run_copy):
    (run_copy / "summary.json").unlink()
    assert summarise_run(run_copy) == summary
    assert json.loads((run_copy / "summary.json").read_text()) == summary


def test_the_terminal_table_fits_80_columns(summary):
    console = Console(width=80, record=True, quiet=False, file=io.StringIO())
    rows = [
        row | {m: row[m] | {"pooled": 1.0} for m in ("dice", "sensitivity", "specificity")}
        for row in summary["rows"]
    ]
    console.print(terminal_table(summary | {"rows": rows}))
    text = console.export_text()
    assert "…" not in text and "100.00 (89.61)" in text
