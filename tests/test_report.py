"""The table's cells and the pictures, made from a finished run's files."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from asegnet_fast.errors import InputError
from asegnet_fast.report.figures import (
    _predictions,
    fold_progress,
    spread_slices,
    training_curves,
    write_figures,
)
from asegnet_fast.report.table import loss_label, markdown, percent, records, terminal_table, write_tables
from asegnet_fast.training.crossval import load_data, summarise_run
from tests.program_runs import finished_run, settings


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


def test_pictures_are_drawn(summary, run_copy):
    slices = load_data(settings(run_copy))
    write_figures(run_copy, summary, slices)
    fold_progress(run_copy / "segnet--dl" / "fold0", "a title")
    pictures = [
        run_copy / "figures" / f"{name}.png" for name in ("data_samples", "qualitative", "training_curves")
    ]
    for path in [*pictures, run_copy / "segnet--dl" / "fold0" / "progress.png"]:
        picture = imread(path)
        assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05
    assert not list(run_copy.rglob(".*"))


def test_pictures_show_the_predictions_of_the_fold_that_tested_the_slice(summary, run_copy):
    slices = load_data(settings(run_copy))
    rows = summary["rows"][:1]
    folder = run_copy / rows[0]["folder"]
    metrics = [json.loads((folder / f"fold{k}" / "metrics.json").read_text()) for k in range(2)]
    fold_of = {i: k for k in range(2) for i in metrics[k]["test_indices"]}
    chosen = np.array([metrics[0]["test_indices"][0], metrics[1]["test_indices"][-1]])
    predicted = _predictions(run_copy, rows, slices, chosen, fold_of)[rows[0]["folder"]]
    for labels, index in zip(predicted, chosen, strict=True):
        fold = metrics[fold_of[int(index)]]
        tp, fp, _, _ = fold["counts"][fold["test_indices"].index(index)][0]
        assert abs(int((labels > 0).sum()) - (tp + fp)) <= 2


def test_spread_slices_go_from_small_to_large_without_repeats(run_copy):
    slices = load_data(settings(run_copy))
    chosen = spread_slices(slices, np.arange(len(slices.images)), 4)
    shares = (slices.masks[chosen] > 0).mean((1, 2))
    assert len(set(chosen.tolist())) == 4 and (np.diff(shares) >= 0).all()
    assert len(spread_slices(slices, np.arange(2), 6)) <= 2


def test_a_damaged_history_is_named(summary, run_copy):
    (run_copy / "segnet--dl" / "fold0" / "history.csv").unlink()
    with pytest.raises(ValueError, match=r"history\.csv"):
        fold_progress(run_copy / "segnet--dl" / "fold0", "a title")


@pytest.mark.parametrize("text", ["", "epoch\n1\n", "epoch,lr,loss\n1,2\n", None])
def test_a_history_with_other_content_is_named(summary, run_copy, text):
    path = run_copy / "segnet--dl" / "fold0" / "history.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) if text is None else text)
    with pytest.raises(InputError, match=r"fold0/history\.csv: expected a line of numbers for each epoch"):
        training_curves(run_copy, summary, run_copy / "curves.png")


def test_another_folds_checkpoint_is_not_drawn(summary, run_copy):
    row = run_copy / "segnet--dl"
    shutil.copy(row / "fold1" / "checkpoint_last.pt", row / "fold0" / "checkpoint_last.pt")
    with pytest.raises(InputError, match=r"fold0/checkpoint_last\.pt: expected this fold's"):
        write_figures(run_copy, summary, load_data(settings(run_copy)))


def test_the_terminal_table_fits_80_columns(summary):
    console = Console(width=80, record=True, quiet=False, file=io.StringIO())
    rows = [
        row | {m: row[m] | {"pooled": 1.0} for m in ("dice", "sensitivity", "specificity")}
        for row in summary["rows"]
    ]
    console.print(terminal_table(summary | {"rows": rows}))
    text = console.export_text()
    assert "…" not in text and "100.00 (89.61)" in text
