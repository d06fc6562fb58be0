"""Surface distances against MONAI's, against a distance transform, and against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from asegnet_fast.evaluation.surface import (
    diagonal_mm,
    slice_surface_distances,
    surface_distances,
    surface_voxels,
)

ZOOMS = (0.7, 0.9, 2.5)


def blobs(seed: int, shape=(18, 20, 9), share: float = 0.2) -> np.ndarray:
    """Smooth random shapes, some of them cut by the edge of the image."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return noise > np.quantile(noise, 1 - share)


def turned(zooms=ZOOMS) -> np.ndarray:
    """An oblique affine with these voxel sizes."""
    a, b = np.deg2rad(25), np.deg2rad(-40)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(zooms)
    affine[:3, 3] = 12, -7, 100
    return affine


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("oblique", [False, True])
def test_volumes_agree_with_monai(seed, oblique):
    from monai import metrics

    prediction, truth = blobs(seed), blobs(seed + 100, share=0.1)
    affine = turned() if oblique else np.diag([*ZOOMS, 1.0])
    ours = surface_distances(prediction, truth, affine, tolerance=1.8)
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth)]
    options = {"include_background": True, "spacing": ZOOMS}
    assert ours.hd95 == pytest.approx(
        metrics.compute_hausdorff_distance(*pair, percentile=95, **options).item(), rel=1e-5
    )
    assert ours.assd == pytest.approx(
        metrics.compute_average_surface_distance(*pair, symmetric=True, **options).item(), rel=1e-5
    )
    assert ours.surface_dice == pytest.approx(
        metrics.compute_surface_dice(*pair, class_thresholds=[1.8], **options).item(), rel=1e-5
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_agree_with_monai(axis):
    from monai import metrics

    prediction, truth = blobs(5), blobs(6)
    ours = slice_surface_distances(prediction, truth, np.diag([*ZOOMS, 1.0]), axis)
    spacing = [zoom for other, zoom in enumerate(ZOOMS) if other != axis]
    pair = [torch.from_numpy(np.moveaxis(mask, axis, 0))[:, None].float() for mask in (prediction, truth)]
    options = {"include_background": True, "spacing": spacing}
    theirs = metrics.compute_hausdorff_distance(*pair, percentile=95, **options)[:, 0].numpy()
    both = np.array([p.any() and t.any() for p, t in zip(*pair, strict=True)])
    assert both.sum() > 3
    assert [d.hd95 for d, defined in zip(ours, both, strict=True) if defined] == pytest.approx(
        theirs[both], rel=1e-5
    )
    assert all(np.isnan(d).all() for d, defined in zip(ours, both, strict=True) if not defined)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_a_distance_transform(seed):
    """Another way to the same numbers: the transform of everything but the other's surface."""
    prediction, truth = blobs(seed), blobs(seed + 50)
    surfaces = [m & ~ndimage.binary_erosion(m) for m in (prediction, truth)]
    there = ndimage.distance_transform_edt(~surfaces[1], sampling=ZOOMS)[surfaces[0]]
    back = ndimage.distance_transform_edt(~surfaces[0], sampling=ZOOMS)[surfaces[1]]
    ours = surface_distances(prediction, truth, turned(), tolerance=2)
    assert ours.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert ours.assd == pytest.approx(np.concatenate([there, back]).mean())
    assert ours.surface_dice == pytest.approx((np.concatenate([there, back]) <= 2).mean())


def test_the_tolerance_belongs_to_it():
    """0.9 * 2 in place 7 and in place 3 differ in the last bit."""
    prediction, truth = np.zeros((2, 3, 12, 3), bool)
    for place in range(10):
        prediction[:], truth[:] = False, False
        prediction[1, place, 1] = truth[1, place + 2, 1] = True
        affine = turned((1, 0.9, 1))
        assert surface_distances(prediction, truth, affine, tolerance=1.8).surface_dice == 1


def test_two_voxels_by_hand():
    prediction, truth = np.zeros((2, 9, 9, 9), bool)
    prediction[2, 3, 4] = truth[4, 3, 5] = True
    # Two steps of 0.7 and one of 2.5 mm, whichever way the grid is turned.
    expected = np.hypot(2 * 0.7, 2.5)
    for affine in (np.diag([*ZOOMS, 1.0]), turned()):
        distances = surface_distances(prediction, truth, affine)
        assert distances.hd95 == distances.assd == pytest.approx(expected)
        assert distances.surface_dice == 1  # within 3 mm
        assert surface_distances(prediction, truth, affine, tolerance=2.8).surface_dice == 0


def test_a_sheared_grid_is_exact():
    affine = np.eye(4)
    affine[0, 1] = 1  # the second axis runs diagonally
    prediction, truth = np.zeros((2, 5, 5, 5), bool)
    prediction[1, 1, 1] = truth[1, 3, 1] = True
    assert surface_distances(prediction, truth, affine).hd95 == pytest.approx(np.hypot(2, 2))


def test_a_shifted_square_by_hand():
    truth = np.zeros((30, 30), bool)
    truth[5:15, 5:15] = True
    prediction = np.roll(truth, 3, axis=0)
    affine = np.diag([2.0, 0.5, 1, 1])
    distances = surface_distances(prediction, truth, affine)
    # A column of 10 pixels lies 3 steps of 2 mm away on each side; more than 5 % of the 36 surface pixels.
    assert distances.hd95 == pytest.approx(6)
    assert surface_distances(truth, truth, affine) == (0, 0, 1)


def test_surfaces_of_slices_and_of_the_images_edge():
    full = np.ones((4, 5, 6), bool)
    assert len(surface_voxels(full, [0, 1, 2])) == 4 * 5 * 6 - 2 * 3 * 4
    # In each plane the rim; a single slice of a volume has no surface above and below.
    assert len(surface_voxels(full, [0, 1])) == 6 * (4 * 5 - 2 * 3)
    single = np.ones((4, 5, 1), bool)
    one = surface_distances(single, single, np.eye(4))
    assert one == surface_distances(single[..., 0], single[..., 0], np.eye(4)) == (0, 0, 1)


@pytest.mark.parametrize("empty", ["prediction", "truth", "both"])
def test_an_empty_mask_has_no_distance(empty):
    mask, nothing = blobs(1), np.zeros_like(blobs(1))
    pair = {"prediction": (nothing, mask), "truth": (mask, nothing), "both": (nothing, nothing)}[empty]
    assert np.isnan(surface_distances(*pair, np.eye(4))).all()


def test_the_diagonal_bounds_every_distance():
    assert diagonal_mm((240, 240, 155), np.eye(4)) == pytest.approx(373.13, abs=0.01)
    assert diagonal_mm((3, 4), np.diag([1.0, 2, 1, 1])) == pytest.approx(np.hypot(3, 8))
    sheared = np.eye(4)
    sheared[0, 1] = -1
    assert diagonal_mm((1, 1, 1), sheared) == pytest.approx(np.sqrt(4 + 1 + 1))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="prediction: expected the shape of truth"):
        surface_distances(np.ones((2, 2), bool), np.ones((2, 3), bool), np.eye(4))
