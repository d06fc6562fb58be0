"""The training-step benchmark: its sides do the same work, and a wrong one has no time."""

import argparse

import pytest
import torch

import asegnet_fast as af
from benchmarks import train_step

OPTIONS = argparse.Namespace(device="cpu", preset="matlab64", batch=2, size=16, seconds=0.001)
NAMES = ("fused", "reference", "eager")


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny maps: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    small = {"widths": (4, 6), "convs": (1, 2)}
    networks = {
        "segnet": lambda preset: af.models.SegNet(preset=preset, **small),
        "a_segnet": lambda preset: af.models.ASegNet(preset=preset, **small),
    }
    monkeypatch.setattr(train_step, "MODELS", networks)


@pytest.mark.parametrize("model", ["segnet", "a_segnet"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_side_matches_and_has_a_time(model, precision):
    rows, failures = train_step.run(model, precision, NAMES, ["nchw", "channels_last"], OPTIONS)
    assert failures == []
    assert [(r["side"], r["layout"]) for r in rows] == [
        (n, layout) for n in NAMES for layout in ("nchw", "channels_last")
    ]
    saved = {r["side"]: r["saved_megabytes"] for r in rows if r["layout"] == "nchw"}
    assert 0 < saved["fused"] < saved["eager"]
    (ratio,) = train_step.speedups(rows)
    best = min(r["median_ms"] for r in rows if r["side"] == "fused")
    assert ratio["best_peer"] == pytest.approx(
        min(r["median_ms"] for r in rows if r["side"] == "eager") / best
    )
    assert ratio["torch.compile"] is None


def test_a_wrong_loss_of_ours_has_no_time(monkeypatch):
    right = af.focal_tversky_loss
    monkeypatch.setattr(af, "focal_tversky_loss", lambda *args: 1.05 * right(*args))
    rows, failures = train_step.run("segnet", "fp32", NAMES, ["nchw"], OPTIONS)
    assert [r["side"] for r in rows] == ["eager"]
    assert len(failures) == 2 and all("loss" in f for f in failures)


def test_a_wrong_gradient_of_ours_has_no_time(monkeypatch):
    right = af.focal_tversky_loss

    def wrong(*args):
        loss = right(*args)
        return loss.detach() + 1.05 * (loss - loss.detach())

    monkeypatch.setattr(af, "focal_tversky_loss", wrong)
    rows, failures = train_step.run("segnet", "fp32", ["fused", "eager"], ["nchw"], OPTIONS)
    assert [r["side"] for r in rows] == ["eager"]
    assert "gradient" in failures[0]


@pytest.mark.parametrize("defaults", [{}, {"alpha": 0.7, "beta": 0.3, "gamma": 1.0}])
def test_the_plain_loss_is_the_same_loss(defaults):
    logits = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    target = torch.randint(0, 3, (2, 5, 7))
    torch.testing.assert_close(
        train_step.plain_focal_tversky(logits, target, **defaults),
        af.focal_tversky_loss(logits, target, **defaults),
    )


@pytest.mark.parametrize("option", ["--models", "--precisions", "--layouts"])
def test_wrong_options_are_one_line(option, capsys):
    assert train_step.main([option, "nothing"]) == 2
    error = capsys.readouterr().err
    assert f"{option}: expected" in error and "got nothing" in error and error.count("\n") == 1
