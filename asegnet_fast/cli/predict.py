"""`asegnet-fast predict`: masks, maps and reports of CT volumes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asegnet_fast.cli._options import path_option, some_path, takes_settings
from asegnet_fast.cli._run import PROGRAM
from asegnet_fast.errors import InputError
from asegnet_fast.training.config import Settings, convert

if TYPE_CHECKING:
    from asegnet_fast.data.notes import Notes
    from asegnet_fast.inference import Ensemble, Job, Outputs
    from asegnet_fast.training.progress import Reporter


def _switch(flag: str, help: str) -> Any:
    return typer.Option(flag, help=help, show_default=False)


@takes_settings(..., "batch_size", "device", "precision", "backend")
def predict(
    given: dict[str, Any],
    image: Annotated[Path, path_option("NIfTI volume, or a folder of them.", "--input", "-i")],
    out: Annotated[
        Path, path_option("Folder for the results; for one volume also the mask's file.", "--out", "-o")
    ],
    checkpoint: Annotated[
        list[Path],
        path_option(
            "Checkpoint, or a row of a run (RUN/a_segnet--dl) for all its folds; several make an ensemble.",
            metavar="CHECKPOINT",
        ),
    ],
    more: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CHECKPOINT", help="Further checkpoints.", show_default=False, parser=some_path
        ),
    ] = None,
    lung_mask: Annotated[
        Path | None, path_option("Mask of the lung, or a folder of them; adds the share of the lung.")
    ] = None,
    probabilities: Annotated[
        bool, _switch("--probabilities", "Also write the lesion's probability (float32).")
    ] = False,
    attention: Annotated[
        bool, _switch("--attention", "Also write A-SegNet's attention maps (float32).")
    ] = False,
    overlay: Annotated[bool, _switch("--overlay", "Also draw slices with the labels over them.")] = False,
    overwrite: Annotated[bool, _switch("--overwrite", "Replace results that are there.")] = False,
) -> None:
    """Segment CT volumes: CASE.nii.gz on each volume's own grid, and CASE.json.

    Volumes may have any orientation and number type; their slices are prepared as in training. A volume that cannot be
    used does not stop the others.
    """
    import asegnet_fast as af
    from asegnet_fast.data.notes import Notes
    from asegnet_fast.environment import check_backend, choose_device, keep_large_allocations, precision_note
    from asegnet_fast.files import remove_leftovers
    from asegnet_fast.inference import find_volumes, load_ensemble, plan_outputs
    from asegnet_fast.training.progress import Reporter

    given = {name: value for name, value in given.items() if value is not None}
    settings = Settings(data=str(image), out=str(out), **convert(given))
    keep_large_allocations()
    device = choose_device(settings.device)
    check_backend(settings.backend, device)
    jobs = find_volumes(image, lung_mask)
    ensemble = load_ensemble([*checkpoint, *(more or [])], device, settings.precision)
    plans = plan_outputs(jobs, out, ensemble, probabilities, attention, overlay, overwrite)
    for folder in {path.parent for outputs in plans for path in outputs.all()}:
        remove_leftovers(folder)
    failed, notes = 0, Notes()
    with Reporter() as reporter, af.use_backend(settings.backend):
        reporter.say(f"{_told(ensemble)}; device {device}, {settings.precision}, backend {settings.backend}")
        if note := precision_note(settings.precision, device):
            reporter.say(f"note: {note}")
        for index, (job, outputs) in enumerate(zip(jobs, plans, strict=True)):
            reporter.volumes(index, len(jobs), job.image.name)
            try:
                _predict_one(ensemble, job, outputs, settings.batch_size, reporter, notes)
            except InputError as error:
                if len(jobs) == 1:
                    raise
                failed += 1
                print(f"{PROGRAM}: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                reporter.say(
                    f"interrupted; {index} of {len(jobs)} volumes are whole, nothing is half-written"
                )
                raise typer.Exit(130) from None
        for note in notes.lines(len(jobs), "volumes"):
            reporter.say(f"note: {note}")
    if failed:
        print(f"{PROGRAM}: {failed} of {len(jobs)} volumes could not be predicted", file=sys.stderr)
        raise typer.Exit(2)


def _predict_one(
    ensemble: Ensemble, job: Job, outputs: Outputs, batch_size: int, reporter: Reporter, notes: Notes
) -> None:
    import torch

    from asegnet_fast.inference import predict_volume

    def draw(*arguments: Any) -> None:
        from asegnet_fast.report.preview import draw_preview

        draw_preview(*arguments, values=ensemble.values)

    def progress(done: int, total: int) -> None:
        reporter.slices(done, total, job.image.name)

    try:
        report = predict_volume(ensemble, job, outputs, batch_size, progress, draw)
    except torch.OutOfMemoryError:
        raise InputError(
            f"--batch-size: expected what the device's memory holds, got {batch_size} (slices of "
            f"{ensemble.size} pixels)"
        ) from None
    for note in report["notes"]:
        notes.add(note, job.image.name)
    result = report["result"]
    ml = result["lesion"]["ml"]
    parts = [
        f"lesion {result['lesion']['voxels']} voxels" if ml is None else f"lesion {ml:.2f} ml",
        f"in {result['slices']['touched']} of {result['slices']['total']} slices",
    ]
    share = result.get("lung", {}).get("lesion_share")
    if share is not None:
        parts.append(f"{100 * share:.2f} % of the lung")
    reporter.say(f"{outputs.mask}: {', '.join(parts)}")


def _told(ensemble: Ensemble) -> str:
    members = ensemble.members
    if len(members) == 1:
        return f"{members[0].model} after {members[0].epoch} epochs"
    return f"{len(members)} checkpoints, mean of their probabilities"
