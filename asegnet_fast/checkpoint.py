"""Checkpoints: written in one step, read without running any code in them, turned back into a network."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asegnet_fast.errors import InputError
from asegnet_fast.files import replacing
from asegnet_fast.models import ASegNet, SegNet

FORMAT = "asegnet_fast checkpoint 1"
# What every checkpoint holds; training adds what it needs to go on.
KEYS = {"format", "model", "network", "state_dict", "normalisation", "epoch"}


class DamagedCheckpoint(InputError):
    """A file that is no whole checkpoint; one of another program or run is a plain `InputError`."""


def write_checkpoint(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Write a checkpoint in one step: whole, or the one before stays.

    Args:
        path: the file.
        content: tensors, numbers, text, and lists and dictionaries of them; holds the keys `KEYS` but `format`.
        previous: where to keep the checkpoint that lay at `path` before.

    Raises:
        OSError: it cannot be written, on a full disk for one; the error names the file.
    """
    # Through memory, because torch's own writer has no error of its own for a full disk.
    whole = io.BytesIO()
    torch.save({"format": FORMAT, **content}, whole)
    with replacing(path, previous) as temporary, open(temporary, "wb") as stream:
        stream.write(whole.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU with `weights_only=True`, its checksums compared.

    Raises:
        DamagedCheckpoint: a file that is cut, altered or something else.
        ValueError: no such file, or one that this package did not write. The message names the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (altered := archive.testzip()) is not None:  # torch.load does not look
                raise zipfile.BadZipFile(f"checksum of {altered}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a checkpoint, got nothing (no such file)") from None
    except Exception as error:
        # A damaged file can raise anything. torch's own text can be pages long; its kind says enough.
        raise DamagedCheckpoint(
            f"{path}: expected a whole checkpoint, got a damaged file ({type(error).__name__})"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not KEYS <= set(content):
        raise InputError(f"{path}: expected a checkpoint written by asegnet-fast, got another file")
    return content


_NETWORKS = {"segnet": SegNet, "a_segnet": ASegNet}


def build_network(model: str, keywords: dict[str, Any]) -> nn.Module:
    """Build `segnet` or `a_segnet` in the memory format training uses.

    Args:
        model: `segnet` or `a_segnet`.
        keywords: the class's keyword arguments.
    """
    return _NETWORKS[model](**keywords).to(memory_format=torch.channels_last)


def load_network(content: dict[str, Any], name: str = "checkpoint") -> nn.Module:
    """The network of a checkpoint, with its weights, in evaluation mode on the CPU.

    Args:
        content: what `read_checkpoint` returned.
        name: how messages call it.

    Raises:
        ValueError: there is no such network, or the weights are not its weights.
    """
    try:
        # Without memory of its own: what a file says of its network's size costs nothing until the weights fit.
        with torch.device("meta"):
            network = build_network(content["model"], content["network"])
        network.load_state_dict(content["state_dict"], assign=True)
        if not all(tensor.dtype == torch.float32 for tensor in network.parameters()):
            raise TypeError("weights of another number type")
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{name}: expected a network and its weights, got others ({reason})") from None
    return network.to(memory_format=torch.channels_last).eval()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast region of `--precision` on `device`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def normalised(images: torch.Tensor, normalisation: dict[str, float]) -> torch.Tensor:
    """Bring slices to the network's input: (image - mean) / sd.

    Args:
        images: uint8 or float32 [N, H, W], in 0..255; left as it is.
        normalisation: {"mean", "sd"} of the training slices' pixels, in 0..255.

    Returns:
        float32 [N, 1, H, W].
    """
    return (
        images.to(torch.float32, copy=True).sub_(normalisation["mean"]).div_(normalisation["sd"]).unsqueeze(1)
    )
