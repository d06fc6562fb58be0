"""Augmentation: images and masks move alike, labels stay labels, the same seed gives the same bits."""

import numpy as np
import pytest
import torch

from asegnet_fast.training.augment import CHANGES, GROUPS, Augmentation
from tests.program_runs import run, settings
from tests.test_resume import ONE, StopAt, results

ALL = ("flips", "affine", "intensity")


def slices(n=6, size=40):
    """Blobs of one grey level on black, with the labels 0 and 3 in the same places."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(n, 1, size // 8, size // 8, generator=generator)
    masks = (torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")[:, 0] > 0.6).to(
        torch.uint8
    ) * 3
    return masks * 80, masks


def change(*texts, seed=0, part=None, images=None, masks=None):
    if images is None:
        images, masks = slices()
    generator = torch.Generator(images.device).manual_seed(seed)
    return Augmentation.parse(texts)(images, masks, generator, part)


def test_nothing_asked_for_is_none_and_the_papers_preset_asks_for_nothing(tmp_path):
    assert Augmentation.parse(()) is None and Augmentation.parse(("noise:0",)) is None
    assert settings(tmp_path).augment == ()


def test_groups_and_single_changes():
    assert (
        set(Augmentation.parse(ALL).amounts)
        == set(CHANGES)
        == {name for group in GROUPS.values() for name in group}
    )
    assert Augmentation.parse(("affine", "rotate:20", "shift:0")).amounts == {"rotate": 20.0, "scale": 0.1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("spin", "expected flips, affine, intensity, or NAME"),
        ("flips:1", "expected flips, affine"),
        ("rotate:200", r"expected 0 to 180 for rotate \(degrees.*got '200'"),
        ("rotate:x", "expected 0 to 180 for rotate"),
        ("rotate:", "expected 0 to 180 for rotate"),
        ("noise:nan", "expected 0 to 1 for noise"),
        ("gain:-1", "expected 0 to 0.99 for gain"),
    ],
)
def test_wrong_changes_are_named(text, said, tmp_path):
    with pytest.raises(ValueError, match=f"--augment: {said}"):
        settings(tmp_path, augment=(text,))


def test_flips_are_exact():
    images, masks = slices()
    flipped, labels = change("flip-lr:1", "flip-ud:1")
    assert torch.equal(flipped.round().to(torch.uint8), images.flip(-1, -2))
    assert torch.equal(labels, masks.flip(-1, -2))
    flipped, labels = change("flip-lr")
    there = [torch.equal(new, old) for new, old in zip(labels, masks, strict=True)]
    back = [torch.equal(new, old.flip(-1)) for new, old in zip(labels, masks, strict=True)]
    assert all(a != b for a, b in zip(there, back, strict=True)) and any(there) and any(back)


@pytest.mark.parametrize(
    "texts", [("rotate:30",), ("scale:0.5",), ("shift:0.2",), ("flips", "affine")], ids=str
)
def test_masks_move_with_their_images(texts):
    images, masks = change(*texts)
    before = slices()[1]
    assert masks.dtype == torch.uint8 and set(masks.unique().tolist()) == {0, 3}
    assert not torch.equal(masks, before)
    # An image that is its mask times 80 still is, but for the half-covered pixels at the edges.
    assert ((images > 120) == (masks > 0)).float().mean() > 0.95
    assert (images - masks * 80.0).abs().mean() < 12


def test_a_turn_keeps_areas_and_a_shrunk_slice_keeps_its_share():
    images, masks = slices(n=64)
    turned, labels = change("rotate:180", images=images, masks=masks)
    # A turn about the centre moves no pixel of the inscribed circle out of it.
    y, x = np.ogrid[-19.5:20, -19.5:20]
    inside = torch.from_numpy(x**2 + y**2 < 19**2)
    for before, after in ((images.float(), turned), (masks.float(), labels.float())):
        before, after = ((maps * inside).sum((1, 2)) for maps in (before, after))
        assert ((before - after).abs() / before.clamp(min=1)).mean() < 0.05
    grown, _ = change("scale:1", images=torch.full_like(images, 200), masks=masks)
    share = (grown > 100).float().mean((1, 2))
    assert share.min() >= 0.25 * 0.9 and share.max() == 1  # half the side at the smallest


def test_intensity_changes_leave_masks_and_stay_in_range():
    before = slices()
    images, masks = change("intensity", "gain:0.9", "offset:1", "noise:1", "gamma:4")
    assert torch.equal(masks, before[1])
    assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 255
    assert before[0].dtype == torch.uint8 and torch.equal(before[0], slices()[0])  # the data themselves stay


@pytest.mark.parametrize(("text", "low", "high"), [("gain:0.5", 0.5, 1.5), ("offset:0.1", 0.75, 1.25)])
def test_amounts_are_what_they_say(text, low, high):
    images = torch.full((500, 1, 1), 102, dtype=torch.uint8)  # 0.4 of the range
    changed, _ = change(text, images=images, masks=torch.zeros_like(images))
    factors = changed / 102
    assert low - 1e-5 <= factors.min() < low + 0.02 and high - 0.02 < factors.max() <= high + 1e-5
    assert factors.mean() == pytest.approx(1, abs=0.05)


def test_each_slice_is_changed_its_own_way():
    images, masks = slices(n=1)
    changed, _ = change(*ALL, images=images.expand(8, -1, -1), masks=masks.expand(8, -1, -1))
    assert len({image.numpy().tobytes() for image in changed}) == 8


def test_same_seed_same_bits_and_parts_of_a_batch():
    whole = change(*ALL, seed=3)
    again, other = change(*ALL, seed=3), change(*ALL, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert not torch.equal(whole[0], other[0])
    images, masks = slices()
    parts = [
        change(
            *ALL, seed=3, part=(first, 6), images=images[first : first + n], masks=masks[first : first + n]
        )
        for first, n in ((0, 2), (2, 4))
    ]
    for i in range(2):
        assert torch.equal(torch.cat([part[i] for part in parts]), whole[i])


@pytest.mark.extended  # tests/kill_runs.py does so with augmented runs, too
def test_an_augmented_run_goes_on_to_the_same_end(tmp_path):
    changes = ONE | {"augment": ALL}
    run(tmp_path / "whole", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", reporter=StopAt(2), **changes)
    run(tmp_path / "stopped", resume=True, **changes)
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
    run(tmp_path / "plain", **ONE)
    assert results(tmp_path / "plain") != results(tmp_path / "whole")


@pytest.mark.gpu
def test_changes_run_on_the_device():
    images, masks = (maps.cuda() for maps in slices())
    changed = change(*ALL, images=images, masks=masks)
    again = change(*ALL, images=images, masks=masks)
    assert changed[0].is_cuda and all(torch.equal(a, b) for a, b in zip(changed, again, strict=True))
