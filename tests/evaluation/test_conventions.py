"""Empty masks under every convention, and the presets against the tools they are named after."""

import math

import numpy as np
import pytest
import torch

from asegnet_fast.errors import InputError
from asegnet_fast.evaluation.conventions import Conventions

BOTH, MISSED, INVENTED, FOUND = np.array([[0, 0, 0, 9], [0, 0, 3, 6], [0, 3, 0, 6], [2, 1, 1, 5]])


def dice_of(text, *counts):
    return [float(value) for value in Conventions.parse(text).overlap("dice")(np.array(counts))]


def test_overlap():
    nan = math.nan
    assert dice_of("default", BOTH, MISSED, INVENTED) == [1, 0, 0]
    assert dice_of("dice=nan", BOTH, MISSED, INVENTED) == pytest.approx([nan, 0, 0], nan_ok=True)
    assert dice_of("dice=zero/nan", BOTH, MISSED, INVENTED, FOUND) == pytest.approx(
        [0, 0, nan, 4 / 6], nan_ok=True
    )
    sensitivity = Conventions.parse("sensitivity=one").overlap("sensitivity")
    assert sensitivity(np.array([BOTH, MISSED, INVENTED])).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "both", "one"),
    [
        ("default", math.nan, 50),
        ("hd95=zero/inf", 0, math.inf),
        ("hd95=nan/nan", math.nan, math.nan),
        ("hd95=diagonal/374", 50, 374),
        ("brats,hd95=1.5", 1.5, 374),
    ],
)
def test_distances(text, both, one):
    counts, measured = np.array([BOTH, MISSED, INVENTED, FOUND]), [math.nan] * 3 + [4.0]
    values = Conventions.parse(text).distance("hd95", np.array(measured), counts, 50.0)
    assert values.tolist() == pytest.approx([both, one, one, 4], nan_ok=True)


def test_the_monai_preset_is_what_monai_does():
    from monai import metrics

    mask = torch.zeros(1, 1, 6, 6)
    mask[..., 2:4, 2:4] = 1
    nothing = torch.zeros_like(mask)
    conventions = Conventions.parse("monai")
    for prediction, truth, counts in (
        (nothing, nothing, [0, 0, 0, 36]),
        (nothing, mask, [0, 0, 4, 32]),
        (mask, nothing, [0, 4, 0, 32]),
    ):
        theirs = {
            "dice": metrics.compute_dice(prediction, truth),
            "iou": metrics.compute_iou(prediction, truth),
            "hd95": metrics.compute_hausdorff_distance(
                prediction, truth, include_background=True, percentile=95
            ),
            "assd": metrics.compute_average_surface_distance(
                prediction, truth, include_background=True, symmetric=True
            ),
        }
        for name, value in theirs.items():
            ours = (
                conventions.overlap(name)(np.array(counts))
                if name in ("dice", "iou")
                else conventions.distance(name, np.array(math.nan), np.array(counts), 8.5)
            )
            assert float(ours) == pytest.approx(value.item(), nan_ok=True), (name, counts)


def test_the_words_are_told():
    text = Conventions.parse("nnunet,hd95=nan/374").to_json()
    assert text["dice"] == "nan/zero" and text["hd95"] == "nan/374" and text["assd"] == "nan/diagonal"
    assert Conventions.parse(",".join(f"{k}={v}" for k, v in text.items())).to_json() == text
    sentences = Conventions().sentences(distances=True)
    assert "dice 1 where both masks are empty, 0 where only the truth is" in sentences
    assert "hd95 left out where both masks are empty, the image's diagonal where only one is" in sentences
    assert not any("hd95" in line for line in Conventions().sentences(distances=False))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dice=nan,",
        "nonsense",
        "dice",
        "dice=",
        "dice=two",
        "dice=one/inf",
        "sensitivity=nan/zero",
        "hd95=-3",
        "hd95=nan/nan/nan",
        "hd95=one",
        "size=one",
    ],
)
def test_a_wrong_convention_is_refused(text):
    with pytest.raises(InputError, match=r"^--empty: expected .*got"):
        Conventions.parse(text)
