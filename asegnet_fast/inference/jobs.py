"""Which volumes are predicted, and where everything about them goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asegnet_fast.data.header import SUFFIXES, nifti_stem
from asegnet_fast.errors import InputError
from asegnet_fast.files import check_writable
from asegnet_fast.inference.ensemble import Ensemble

# nnU-Net's name for the first channel of a case, which its masks do not carry.
_CHANNEL = "_0000"


@dataclass(frozen=True)
class Job:
    """A volume to be predicted, and a mask of its lung or None."""

    image: Path
    lung: Path | None


@dataclass(frozen=True)
class Outputs:
    """The files that a volume's prediction makes; None or empty where they are not wanted.

    Attributes:
        mask: label map.
        report: JSON, written last: where it is, all others are.
        picture: PNG of some slices.
        probabilities: one map for each lesion class.
        attention: one map for each gate, finest first.
    """

    mask: Path
    report: Path
    picture: Path | None = None
    probabilities: tuple[Path, ...] = ()
    attention: tuple[Path, ...] = ()

    def all(self) -> list[Path]:
        """Every file."""
        picture = [self.picture] if self.picture else []
        return [self.mask, self.report, *picture, *self.probabilities, *self.attention]


def find_volumes(image: Path, lung: Path | None = None) -> list[Job]:
    """The volumes that `--input` names.

    Args:
        image: a NIfTI file, or a folder of them (its sub-folders are not looked into).
        lung: the lung mask of the file, or a folder with one for each, under the same names.

    Raises:
        ValueError: nothing there, or a volume without its lung mask.
    """
    if not image.is_dir():
        if not image.is_file():
            raise InputError(
                f"--input: expected a NIfTI file or a folder of them, got nothing there ({image})"
            )
        if nifti_stem(image.name) is None:
            raise InputError(f"--input: expected a file ending in {' or '.join(SUFFIXES)}, got {image}")
        if lung is not None and not lung.is_file():
            raise InputError(f"--lung-mask: expected the file of {image.name}'s lung, got no file ({lung})")
        return [Job(image, lung)]
    images = _volumes_of(image, "--input")
    if not images:
        raise InputError(f"--input: expected a folder with NIfTI files, got none in {image}")
    if lung is None:
        return [Job(path, None) for path in images.values()]
    if not lung.is_dir():
        raise InputError(f"--lung-mask: expected a folder, because --input is one, got {lung}")
    lungs = _volumes_of(lung, "--lung-mask")
    for name, path in images.items():
        if name not in lungs:
            raise InputError(f"--lung-mask: expected a mask for {path.name} in {lung}, got none of that name")
    return [Job(path, lungs[name]) for name, path in images.items()]


def _volumes_of(folder: Path, option: str) -> dict[str, Path]:
    """Case names and their files, sorted by name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if nifti_stem(path.name) is None or not path.is_file():
            continue
        name = _case(path)
        if name in found:
            raise InputError(f"{option}: expected one file a case, got {found[name].name} and {path.name}")
        found[name] = path
    return found


def _case(path: Path) -> str:
    stem = nifti_stem(path.name)
    return stem.removesuffix(_CHANNEL) or stem


def plan_outputs(
    jobs: Sequence[Job],
    out: Path,
    ensemble: Ensemble,
    probabilities: bool = False,
    attention: bool = False,
    picture: bool = False,
    overwrite: bool = False,
) -> list[Outputs]:
    """Where the predictions of some volumes go.

    Args:
        jobs: the volumes.
        out: a folder; for one volume also the mask's own file, beside which the rest then lies.
        ensemble: what predicts.
        probabilities, attention, picture: what is wanted beside mask and report.
        overwrite: whether files that are there may be replaced.

    Returns:
        The outputs of each job: `CASE.nii.gz` (the mask), `CASE.json`, `CASE.png`, `probabilities/CASE.nii.gz` (with
        more classes `CASE_label2.nii.gz`, ...) and `attention/CASE_gate1.nii.gz`, ...

    Raises:
        ValueError: an output is there already, would replace an input, or cannot be made.
    """
    if attention and not ensemble.gates:
        kinds = ", ".join(
            sorted({f"{member.model} with {member.gates} gates" for member in ensemble.members})
        )
        raise InputError(f"--attention: expected networks with the same number of gates, got {kinds}")
    own_file = nifti_stem(out.name) is not None and not out.is_dir()
    if own_file and len(jobs) > 1:
        raise InputError(f"--out: expected a folder for {len(jobs)} volumes, got a file's name ({out})")
    folder = out.parent if own_file else out
    check_writable(folder)
    sources = {path.resolve() for job in jobs for path in (job.image, job.lung) if path is not None}
    sources |= {member.path.resolve() for member in ensemble.members}
    plans = []
    for job in jobs:
        case = nifti_stem(out.name) if own_file else _case(job.image)
        labels = ensemble.values
        names = [case] if len(labels) == 1 else [f"{case}_label{value}" for value in labels]
        outputs = Outputs(
            mask=out if own_file else folder / f"{case}.nii.gz",
            report=folder / f"{case}.json",
            picture=folder / f"{case}.png" if picture else None,
            probabilities=tuple(folder / "probabilities" / f"{n}.nii.gz" for n in names)
            if probabilities
            else (),
            attention=tuple(
                folder / "attention" / f"{case}_gate{k}.nii.gz" for k in range(1, ensemble.gates + 1)
            )
            if attention
            else (),
        )
        for path in outputs.all():
            if path.resolve() in sources:
                raise InputError(f"--out: expected another place than the input's, got {path}")
            if path.is_dir() or (path.exists() and not overwrite):
                raise InputError(f"--out: expected no {path} there, got one (replace files with --overwrite)")
        plans.append(outputs)
    return plans
