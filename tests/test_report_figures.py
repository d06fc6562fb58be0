"""The pictures of a run, made from its files."""

import json
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from asegnet_fast.data import DataError, load_labels, load_slices
from asegnet_fast.errors import InputError
from asegnet_fast.report.cases import choose_cases, slice_name, spread_slices
from asegnet_fast.report.charts import fold_curves, fold_progress, training_curves
from asegnet_fast.report.colours import CLASSES, HIT, LINES, rgb
from asegnet_fast.report.counts import read_counts, row_intervals
from asegnet_fast.report.figures import write_figures
from asegnet_fast.report.pictures import heat, paint, png
from asegnet_fast.report.strips import MAX_PANELS, PIXELS, attention, data_samples, qualitative
from asegnet_fast.training.crossval import load_data
from tests.data_sets import blob_mask, hu_volume, write
from tests.program_runs import finished_run, settings


@pytest.fixture
def summary():
    return json.loads((finished_run() / "summary.json").read_text())


@pytest.fixture
def run_copy(tmp_path):
    shutil.copytree(finished_run(), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def slices():
    return load_data(settings(finished_run()))


def test_every_picture_is_drawn(summary, run_copy, slices):
    summary |= {"rows": summary["rows"][:2]}
    intervals = row_intervals(read_counts(run_copy, summary))
    figures = write_figures(run_copy, summary, intervals, slices)
    fold_progress(run_copy / "segnet--dl" / "fold0", "a title")
    assert figures.problems == [] and set(figures.strips) == {"data_samples", "qualitative", "attention"}
    for path in [run_copy / "figures" / f"{name}.png" for name in figures.strips]:
        picture = imread(path)
        assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05
    assert imread(run_copy / "segnet--dl" / "fold0" / "progress.png")[..., :3].std() > 0.05
    names = {"training_curves", *(f"comparison-{m}" for m in ("dice", "sensitivity", "specificity"))}
    assert set(figures.charts) == names | {f"folds--{row['folder']}" for row in summary["rows"]}
    for path in figures.charts.values():
        text = path.read_text()
        assert ElementTree.fromstring(text).tag.endswith("svg") and "currentColor" in text
        assert "prefers-color-scheme:dark" in text and "<!DOCTYPE" not in text
    assert not list(run_copy.rglob(".*"))


def test_charts_are_the_same_bytes_each_time(summary, tmp_path):
    for name in ("a.svg", "b.svg"):
        fold_curves(finished_run(), summary["rows"][0], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_cases_show_the_predictions_of_the_fold_that_tested_the_slice(summary, slices):
    run = finished_run()
    cases = choose_cases(run, summary, slices)
    assert len(cases.chosen) == 4 and cases.problems == []
    for row in summary["rows"]:
        folds = [
            json.loads((run / row["folder"] / f"fold{k}" / "metrics.json").read_text()) for k in range(2)
        ]
        fold_of = {i: fold for fold in folds for i in fold["test_indices"]}
        for prediction, index in zip(cases.predictions[row["folder"]], cases.chosen.tolist(), strict=True):
            fold = fold_of[index]
            tp, fp, _, _ = fold["counts"][fold["test_indices"].index(index)][0]
            assert abs(int((prediction.labels > 0).sum()) - (tp + fp)) <= 2
            sizes = [alpha.shape for alpha in prediction.alphas]
            assert sizes == ([(32, 32), (16, 16)] if row["model"] == "a_segnet" else [])
            assert all(0 <= alpha.min() and alpha.max() <= 1 for alpha in prediction.alphas)


def test_attention_maps_are_of_gated_rows_and_tell_their_means(summary, slices):
    cases = choose_cases(finished_run(), summary, slices)
    figure = attention(summary["rows"], slices, cases)
    assert len(figure.strips) == 2 * 2 and all(len(strip.panels) == 3 for strip in figure.strips)
    row = next(row["folder"] for row in summary["rows"] if row["model"] == "a_segnet")
    gate = figure.strips[0].panels[1]
    place = next(p for p, i in enumerate(cases.chosen) if slice_name(slices, i) in figure.strips[0].title)
    alpha, truth = cases.predictions[row][place].alphas[0], slices.masks[cases.chosen[place]] > 0
    assert gate.caption[1] == f"α {alpha.min():.2f} to {alpha.max():.2f}"
    assert gate.caption[2] == f"lesion {alpha[truth].mean():.2f}, rest {alpha[~truth].mean():.2f}"


def test_pictures_keep_to_their_size_with_any_number_of_rows(summary, slices):
    cases = choose_cases(finished_run(), summary, slices)
    rows = [summary["rows"][1] | {"folder": f"row{i}"} for i in range(100)]
    many = {f"row{i}": cases.predictions[summary["rows"][1]["folder"]] for i in range(100)}
    cases = type(cases)(cases.chosen, many, [], [])
    for figure in (qualitative(rows, slices, cases), attention(rows, slices, cases)):
        panels = [panel.picture for strip in figure.strips for panel in strip.panels]
        assert len(panels) <= MAX_PANELS and sum(p.shape[0] * p.shape[1] for p in panels) <= PIXELS
        assert 0 < figure.left_out < 100


def test_spread_slices_go_from_small_to_large_without_repeats(slices):
    chosen = spread_slices(slices, np.arange(len(slices.images)), 4)
    shares = (slices.masks[chosen] > 0).mean((1, 2))
    assert len(set(chosen.tolist())) == 4 and (np.diff(shares) >= 0).all()
    assert len(spread_slices(slices, np.arange(2), 6)) <= 2


def test_merged_labels_are_told_apart_in_the_data_samples(slices):
    chosen = spread_slices(slices, np.arange(len(slices.images)), 6)
    cases = [(slices.sources[i], slices.indices[i]) for i in chosen]
    labels = load_labels(settings(finished_run()).data, cases, 32)
    assert slices.num_classes == 2 and set(np.unique(labels)) == {0, 1, 2}
    np.testing.assert_array_equal(labels > 0, slices.masks[chosen] > 0)
    figure = data_samples(slices, chosen, labels)
    assert [name for _, name in figure.legend] == ["label 1", "label 2"]
    place = int(np.argmax((labels == 2).sum((1, 2))))
    beneath = figure.strips[0].panels[place].picture[256:]
    assert (beneath == rgb(CLASSES[1])).all(2).any()
    with pytest.raises(DataError, match=r"nothing\.nii: expected an image"):
        load_labels(settings(finished_run()).data, [("nothing.nii", 0)], 32)


def test_labels_keep_the_files_own_values(tmp_path):
    write(tmp_path / "images" / "a.nii.gz", hu_volume())
    write(tmp_path / "masks" / "a.nii.gz", blob_mask(label=3))
    labels = load_labels(tmp_path, [("images/a.nii.gz", 0), ("images/a.nii.gz", 1)], 36)
    assert not labels[0].any() and set(np.unique(labels[1])) == {0, 3}
    merged = load_slices(tmp_path, size=36, select="all")
    np.testing.assert_array_equal(labels[1] == 3, merged.masks[1] == 1)
    with pytest.raises(DataError, match="expected slices up to 99, got 6"):
        load_labels(tmp_path, [("images/a.nii.gz", 99)], 36)


def test_paint_fills_and_outlines(tmp_path):
    image = np.full((16, 16), 100, np.uint8)
    area = np.zeros((16, 16), bool)
    area[4:12, 4:12] = True
    picture = paint(image, [(area, HIT)], 64)
    assert picture.shape == (64, 64, 3) and (picture[0, 0] == 100).all()
    assert tuple(picture[16, 30]) == rgb(HIT)
    inside = tuple(picture[32, 32])
    assert inside == tuple(round(0.55 * 100 + 0.45 * c) for c in rgb(HIT))
    assert paint(np.zeros((300, 300), np.uint8), [], 256).shape == (256, 256, 3)
    (tmp_path / "a.png").write_bytes(png(picture))
    np.testing.assert_allclose(imread(tmp_path / "a.png")[..., :3] * 255, picture, atol=3)


def test_heat_lays_a_coarse_map_over_the_slice():
    alpha = np.array([[0.0, 1.0], [1.0, 0.0]])
    picture = heat(np.zeros((64, 64), np.uint8), alpha, 64).astype(int)
    assert picture.shape == (64, 64, 3)
    assert (picture[:32, :32] == picture[0, 0]).all() and (picture[:32, 32:] == picture[0, 63]).all()
    assert picture[0, 63].sum() > picture[0, 0].sum()


def test_lines_and_bars_stand_out_on_white_and_on_black():
    def luminance(colour):
        parts = [c / 255 for c in rgb(colour)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark = luminance("#1b1e24")
    for colour in LINES:
        assert 1.05 / (luminance(colour) + 0.05) >= 3 and (luminance(colour) + 0.05) / (dark + 0.05) >= 3, (
            colour
        )


def test_a_damaged_history_is_named(run_copy):
    (run_copy / "segnet--dl" / "fold0" / "history.csv").unlink()
    with pytest.raises(ValueError, match=r"history\.csv"):
        fold_progress(run_copy / "segnet--dl" / "fold0", "a title")


@pytest.mark.parametrize("text", ["", "epoch\n1\n", "epoch,lr,loss\n1,2\n", None])
def test_a_history_with_other_content_is_named(summary, run_copy, text):
    path = run_copy / "segnet--dl" / "fold0" / "history.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) if text is None else text)
    with pytest.raises(InputError, match=r"fold0/history\.csv: expected a line of numbers for each epoch"):
        training_curves(run_copy, summary, run_copy / "curves.svg")


def test_a_damaged_piece_costs_only_what_needs_it(summary, run_copy, slices):
    summary |= {"rows": summary["rows"][:2]}
    intervals = row_intervals(read_counts(run_copy, summary))
    first, second = (run_copy / row["folder"] for row in summary["rows"])
    shutil.copy(first / "fold1" / "checkpoint_last.pt", first / "fold0" / "checkpoint_last.pt")
    (second / "fold0" / "history.csv").write_text("")
    stale = run_copy / "figures" / f"folds--{second.name}.svg"
    stale.parent.mkdir(exist_ok=True)
    stale.write_text("of an earlier state")
    figures = write_figures(run_copy, summary, intervals, slices)
    assert len(figures.problems) == 2
    assert "fold0/history.csv: expected" in figures.problems[0]
    assert "fold0/checkpoint_last.pt: expected this fold's" in figures.problems[1]
    assert f"folds--{first.name}" in figures.charts and not stale.exists()
    assert len(figures.strips["qualitative"].strips[0].panels) == 2
