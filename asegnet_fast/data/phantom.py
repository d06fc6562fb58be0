"""A synthetic chest CT set with lesions: enough anatomy to train on where no real data may be shipped."""

import os
from pathlib import Path

import numpy as np

from asegnet_fast.data.nifti import write_volume
from asegnet_fast.errors import InputError

_FIELD_OF_VIEW_MM = 360.0
_SLICE_SPACING_MM = 5.0
# Share of a slice's pixels that the lesions of a patient are sized for, drawn log-uniformly.
_SMALLEST_SHARE, _LARGEST_SHARE = 0.001, 0.1


def write_phantom(
    root: str | os.PathLike,
    patients: int = 10,
    slices_per_patient: int = 16,
    size: int = 128,
    seed: int = 0,
) -> Path:
    """Writes a synthetic CT set in the layout of the two sets of Budak et al. 2021.

    Patient 1 becomes `tr_im.nii.gz` and `tr_mask.nii.gz`, each further one `rp_im/k.nii.gz` and
    `rp_msk/k.nii.gz`, so every file is one patient. Images are int16 Hounsfield units, masks uint8: 1 ground
    glass (-700 to -300 HU), 2 consolidation (0 to 100 HU). Lesions are 3-D, irregular, of widely varying
    size; the first and last slices of a patient have none.

    Args:
        root: the folder to fill; made where it does not exist.
        patients: 1 or more.
        slices_per_patient: axial slices of each, 4 or more.
        size: rows and columns, 32 or more; a pixel is 360 mm / size.
        seed: 0 or more; the same arguments give the same values.

    Returns:
        `root` as a Path.

    Raises:
        ValueError: an argument outside its range.
    """
    for name, value, least in (
        ("patients", patients, 1),
        ("slices_per_patient", slices_per_patient, 4),
        ("size", size, 32),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"{name}: expected {least} or more, got {value}")
    root = Path(root)
    pixel = _FIELD_OF_VIEW_MM / size
    edge = (size - 1) / 2 * pixel
    # Columns run to the patient's left and rows to the back, as in most scanners' files.
    affine = np.diag([-pixel, -pixel, _SLICE_SPACING_MM, 1.0])
    affine[:3, 3] = edge, edge, -_SLICE_SPACING_MM * slices_per_patient / 2
    for patient in range(patients):
        image, mask = _patient(slices_per_patient, size, np.random.default_rng([seed, patient]))
        names = ("tr_im", "tr_mask") if patient == 0 else (f"rp_im/{patient}", f"rp_msk/{patient}")
        for name, slices in zip(names, (image, mask), strict=True):
            write_volume(root / f"{name}.nii.gz", np.ascontiguousarray(slices.transpose(2, 1, 0)), affine)
    return root


def _patient(n: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns int16 HU and uint8 labels, both [n, size, size]."""
    image, lung = _anatomy(n, size, rng)
    labels, lesion_hu, weight = _lesions(lung, rng)
    # Vessels stay visible through ground glass because a lesion can only make lung denser.
    image = np.where(weight > 0, np.maximum(image, image + weight * (lesion_hu - image)), image)
    # The scanner's resolution: edges of vessels and of the lung take the values of ground glass.
    image = _blur(image, (0.0, size / 220, size / 220))
    # Scanner noise is correlated over about a pixel.
    image = image + 25.0 * _smooth_noise(image.shape, (0.0, 0.7, 0.7), rng)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16), labels


def _anatomy(n: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 HU and the lung mask, [n, size, size]; z runs from the diaphragm to the apex."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1) * np.float32(1.0)
    z = np.linspace(-0.75, 0.75, n, dtype=np.float32)[:, None, None]
    y, x = axis[None, :, None], axis[None, None, :]
    shape = (n, size, size)
    vary = lambda spread: 1.0 + spread * float(rng.uniform(-1, 1))  # noqa: E731

    wide, deep = 0.88 * vary(0.06), 0.62 * vary(0.08)
    wobble = 0.04 * _smooth_noise(shape, (n / 4, size / 8, size / 8), rng)
    body = _ellipse(x, y, 0.0, 0.0, wide, deep) + wobble
    chest = _ellipse(x, y, 0.0, 0.0, wide * 0.9, deep * 0.88) + wobble
    image = np.full(shape, -1000.0, np.float32)
    image[body < 1] = -100.0
    image[chest < 1] = 50.0
    # The couch: a thin curved shell under the patient.
    couch = np.abs(y - (deep + 0.1 + 0.06 * (1 - x**2))) < 0.012
    image[np.broadcast_to(couch & (np.abs(x) < 0.85), shape)] = -250.0

    height = np.sqrt(1 - 0.75 * z**2)
    gap, lung_wide, lung_deep = 0.40 * vary(0.05), 0.33 * vary(0.06), 0.46 * vary(0.06)
    right = _ellipse(x, y, -gap, -0.02, lung_wide * height, lung_deep * height)
    left = _ellipse(x, y, gap, -0.02, lung_wide * 0.95 * height, lung_deep * height)
    heart_size = np.clip(0.75 - 0.6 * z, 0.35, 1.2)
    heart = _ellipse(x, y, 0.10, -0.14, 0.30 * heart_size * vary(0.1), 0.26 * heart_size)
    middle = _ellipse(x, y, 0.0, 0.05, 0.11, 0.40)
    lung = ((right + wobble < 1) | (left + wobble < 1)) & (heart > 1) & (middle > 1)
    # The part that lies lowest (the back) is denser, as in a patient lying down.
    air = -870.0 + 40.0 * vary(1.0) + 45.0 * y + 35.0 * _smooth_noise(shape, (1.0, size / 50, size / 50), rng)
    # Blood and collapsed air spaces settle there: healthy, yet as dense as faint ground glass.
    settled = np.clip(
        (y - 0.16 + 0.05 * _smooth_noise(shape, (n / 5, size / 16, size / 16), rng)) / 0.3, 0, 1
    )
    air = air + float(rng.uniform(60, 330)) * settled
    image[lung] = air[lung]
    vessels = _smooth_noise(shape, (1.2, size / 90, size / 90), rng)
    hilum = np.exp(-((np.abs(x) - 0.22) ** 2 + y**2) / 0.06)
    inside = lung & (vessels > 2.1 - 0.9 * hilum)
    image[inside] = -150.0 + 180.0 * np.clip(vessels[inside] - 1.2, 0, 1)
    image[np.broadcast_to(_ellipse(x, y, 0.0, 0.04, 0.055, 0.05), shape) < 1] = -980.0
    image[np.broadcast_to(_ellipse(x, y, 0.10, 0.24, 0.07, 0.07), shape) < 1] = 65.0
    image[(heart < 1) & ~lung & (chest < 1)] += 5.0

    bone = 380.0 + 60.0 * _smooth_noise(shape, (1.0, 1.0, 1.0), rng)
    spine = (_ellipse(x, y, 0.0, 0.40, 0.12, 0.10) < 1) | (_ellipse(x, y, 0.0, 0.53, 0.05, 0.10) < 1)
    angle = np.arctan2(y / deep, x / wide)
    rings = np.abs(np.sqrt(_ellipse(x, y, 0.0, 0.0, wide * 0.86, deep * 0.84)) - 1) < 0.035
    # Ribs run obliquely, so a slice cuts each as a short arc that moves with z.
    ribs = rings & (np.cos(9 * angle + 10 * z * np.sign(x)) > 0.35) & ~lung
    sternum = _ellipse(x, y, 0.0, -deep * 0.83, 0.09, 0.035) < 1
    for part in (spine, ribs, sternum):
        part = np.broadcast_to(part, shape) & (chest < 1)
        image[part] = bone[part]
    image[np.broadcast_to(_ellipse(x, y, 0.0, 0.51, 0.03, 0.03), shape) < 1] = 30.0
    return image, lung


def _lesions(lung: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns uint8 labels, HU inside the lesions, and how far the lung gives way to them (0..1)."""
    n, size, _ = lung.shape
    labels = np.zeros(lung.shape, np.uint8)
    hu = np.zeros(lung.shape, np.float32)
    weight = np.zeros(lung.shape, np.float32)
    # The ends of the volume stay healthy, so that a set has slices without a lesion.
    margin = max(1, n // 6)
    usable = lung.copy()
    usable[:margin] = usable[n - margin :] = False
    usable[:, : size // 5] = usable[:, -(size // 5) :] = False
    places = np.argwhere(usable)
    if not len(places):
        return labels, hu, weight
    z, y, x = np.ogrid[:n, :size, :size]
    share = _log_uniform(_SMALLEST_SHARE, _LARGEST_SHARE, rng)
    # Small disease is one or two spots; extensive disease is many patches in both lungs, not one huge one.
    count = int(rng.integers(2, 4)) + int(share / 0.012)
    parts = rng.dirichlet(np.full(count, 4.0))
    for part in parts:
        centre = places[rng.integers(len(places))]
        # A slice meets about half of the lesions, the threshold trims each, and lung borders cut large ones.
        radius = size * np.sqrt(max(share * part, 0.0005) / np.pi) * 2.0
        stretch = float(rng.uniform(0.75, 1.35))
        depth = max(1.5, n * float(rng.uniform(0.2, 0.45)))
        rough = _smooth_noise(lung.shape, (max(1.0, depth / 3), radius / 3.5, radius / 3.5), rng)
        field = (
            1.0
            - ((z - centre[0]) / depth) ** 2
            - ((y - centre[1]) / (radius * stretch)) ** 2
            - ((x - centre[2]) / (radius / stretch)) ** 2
            + 0.30 * (rough - rough[tuple(centre)])
        )
        inside = (field > 0.3) & lung
        inside[:margin] = inside[n - margin :] = False
        # Where a slice only grazes the lesion, a pixel or two would be noise to any reader.
        inside &= np.count_nonzero(inside, axis=(1, 2), keepdims=True) >= 0.0004 * size**2
        ground_glass, solid = rng.uniform(-650, -350), rng.uniform(10, 90)
        # Of the lesions about a quarter are solid throughout (small ones only), a third have a solid core.
        kind = rng.random()
        solid_from = 0.3 if kind < 0.25 and radius < 0.1 * size else 0.75 if kind < 0.58 else np.inf
        core = inside & (field > solid_from)
        labels[inside & (labels == 0)] = 1
        labels[core] = 2
        texture = 40.0 * _smooth_noise(lung.shape, (0.8, size / 80, size / 80), rng)
        hu = np.where(inside & (labels < 2), np.clip(ground_glass + texture, -700, -300), hu)
        hu = np.where(core, np.clip(solid + 0.4 * texture, 0, 100), hu)
        weight = np.where(inside, np.maximum(weight, np.clip((field - 0.3) / 0.15, 0.6, 1)), weight)
    return labels, hu, weight


def _ellipse(x, y, centre_x, centre_y, radius_x, radius_y):
    """Below 1 inside."""
    return ((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _smooth_noise(
    shape: tuple[int, int, int], sigma: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """White noise blurred by `_blur`, mean 0, deviation 1."""
    noise = _blur(rng.standard_normal(shape, dtype=np.float32), sigma)
    noise -= noise.mean()
    return noise / max(float(noise.std()), 1e-12)


def _blur(values: np.ndarray, sigma: tuple[float, float, float]) -> np.ndarray:
    """Convolves float32 [n, rows, columns] with a periodic Gaussian of the given widths in voxels."""
    spectrum = np.fft.rfftn(values)
    for axis, width in enumerate(sigma):
        n = values.shape[axis]
        frequency = np.fft.rfftfreq(n) if axis == 2 else np.fft.fftfreq(n)
        gain = np.exp(-2 * (np.pi * width * frequency) ** 2)
        spectrum *= gain.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.fft.irfftn(spectrum, values.shape, axes=(0, 1, 2)).astype(np.float32)
