"""Which image belongs to which mask in a folder: the paper's sets, nnU-Net's, and plain pairs."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from asegnet_fast.data.errors import DataError
from asegnet_fast.data.header import nifti_stem

_LAYOUTS = (
    "tr_im.nii.gz + tr_mask.nii.gz and/or rp_im/ + rp_msk/, or imagesTr/ + labelsTr/, "
    "or images/ + masks/ (or labels/)"
)


@dataclass(frozen=True)
class Pair:
    """An image file and its mask file, as posix paths relative to the root."""

    image: str
    mask: str


def discover(root: str | os.PathLike) -> tuple[list[Pair], list[str]]:
    """Finds the image/mask pairs of a data folder.

    Args:
        root: a folder in exactly one of these layouts, `.nii` or `.nii.gz`:
            the paper's `tr_im` + `tr_mask` and/or `rp_im/<name>` + `rp_msk/<name>`;
            nnU-Net's `imagesTr/<case>_0000` + `labelsTr/<case>`;
            `images/<name>` + `masks/<name>` (or `labels/<name>`).

    Returns:
        The pairs in natural order of their names (2 before 10), and remarks for the user.

    Raises:
        DataError: no such folder, no layout or more than one, no pairs, a file without a partner, one name
            twice.
    """
    root = Path(root)
    if not os.path.isdir(root):
        got = "a file" if os.path.exists(root) else "nothing of that name"
        raise DataError(f"{root}: expected a folder with images and masks, got {got}")
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        raise DataError(f"{root}: expected a readable folder, got {error.strerror}") from None
    stems = {nifti_stem(name) for name in names}
    present = {
        "the paper's (tr_im, rp_im)": bool({"tr_im", "tr_mask"} & stems or {"rp_im", "rp_msk"} & set(names)),
        "nnU-Net's (imagesTr)": bool({"imagesTr", "labelsTr"} & set(names)),
        "images/ + masks/": bool({"images", "masks", "labels"} & set(names)),
    }
    found = [layout for layout, there in present.items() if there]
    if len(found) != 1:
        got = "these together: " + ", ".join(found) if found else "none of them"
        raise DataError(f"{root}: expected one layout of {_LAYOUTS}; got {got}")
    notes: list[str] = []
    if present["the paper's (tr_im, rp_im)"]:
        pairs = _paper_pairs(root, names, notes)
    elif present["nnU-Net's (imagesTr)"]:
        pairs = _folder_pairs(root, "imagesTr", "labelsTr", notes, channel="_0000")
    else:
        if "masks" in names and "labels" in names:
            raise DataError(f"{root}: expected masks/ or labels/, got both")
        pairs = _folder_pairs(root, "images", "labels" if "labels" in names else "masks", notes)
    return pairs, notes


def _natural(name: str) -> list:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"([0-9]+)", name)]


def _paper_pairs(root: Path, names: list[str], notes: list[str]) -> list[Pair]:
    top = _nifti_files(root, "", names, notes=None)
    pairs = []
    if "tr_im" in top or "tr_mask" in top:
        pairs += _match(
            root,
            {"": top["tr_im"]} if "tr_im" in top else {},
            "tr_im.nii.gz",
            {"": top["tr_mask"]} if "tr_mask" in top else {},
            "tr_mask.nii.gz",
        )
    if "rp_im" in names or "rp_msk" in names:
        pairs += _folder_pairs(root, "rp_im", "rp_msk", notes)
    if "val_im" in top:
        notes.append(f"{top['val_im']}: has no labels; skipped")
    return pairs


def _folder_pairs(root: Path, images: str, masks: str, notes: list[str], channel: str = "") -> list[Pair]:
    listed = []
    for folder in (images, masks):
        if not (root / folder).is_dir():
            raise DataError(
                f"{root / folder}: expected a folder beside {images if folder == masks else masks}/"
            )
        try:
            listed.append(_nifti_files(root, f"{folder}/", sorted(os.listdir(root / folder)), notes))
        except OSError as error:
            raise DataError(f"{root / folder}: expected a readable folder, got {error.strerror}") from None
    image_files, mask_files = listed
    if channel:
        for stem, path in image_files.items():
            if not stem.endswith(channel):
                raise DataError(
                    f"{root / path}: expected one channel per case, named <case>{channel}, got {stem}"
                )
        image_files = {stem[: -len(channel)]: path for stem, path in image_files.items()}
    if not image_files and not mask_files:
        raise DataError(f"{root / images}: expected NIfTI files (.nii, .nii.gz), got none")
    return _match(root, image_files, f"{images}/", mask_files, f"{masks}/")


def _nifti_files(root: Path, folder: str, names: list[str], notes: list[str] | None) -> dict[str, str]:
    """Maps stems to relative paths; other visible files are remarked on when `notes` is given."""
    files: dict[str, str] = {}
    others = []
    for name in names:
        stem = nifti_stem(name)
        if stem is None:
            if not name.startswith("."):
                others.append(name)
        elif stem in files:
            raise DataError(f"{root / folder / name}: expected one file per name, got also {files[stem]}")
        else:
            files[stem] = folder + name
    if others and notes is not None:
        notes.append(
            f"{folder}: {len(others)} entries that are not NIfTI files ignored ({others[0]}, ...)"
            if len(others) > 1
            else f"{folder}{others[0]}: not a NIfTI file; ignored"
        )
    return files


def _match(
    root: Path, images: dict[str, str], image_place: str, masks: dict[str, str], mask_place: str
) -> list[Pair]:
    for here, there, place, what in (
        (images, masks, mask_place, "mask"),
        (masks, images, image_place, "image"),
    ):
        alone = sorted(here.keys() - there.keys(), key=_natural)
        if alone:
            more = f" (and {len(alone) - 1} more like it)" if len(alone) > 1 else ""
            raise DataError(f"{root / here[alone[0]]}: expected its {what} in {place}, found none{more}")
    return [Pair(images[stem], masks[stem]) for stem in sorted(images, key=_natural)]
