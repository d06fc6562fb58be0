"""Checkpoints: written in one step, read without running any code in them, turned back into a network."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asegnet_fast.errors import InputError
from asegnet_fast.files import replacing

FORMAT = "asegnet_fast checkpoint 1"
# What every checkpoint holds; training adds what it needs to go on.
KEYS = {"format", "model", "network", "state_dict", "normalisation", "epoch"}


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint in one step: whole, or the one before stays.

    Args:
        path: the file.
        content: tensors, numbers, text, and lists and dictionaries of them; holds the keys `KEYS` but `format`.
    """
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, **content}, temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU with `weights_only=True`.

    Raises:
        ValueError: no such file, a damaged one, or one that this package did not write; the message names it.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: expected a checkpoint, got nothing (no such file)") from None
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        # torch's own text can be pages long; its kind says enough.
        raise InputError(
            f"{path}: expected a whole checkpoint, got a damaged file ({type(error).__name__})"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not KEYS <= set(content):
        raise InputError(f"{path}: expected a checkpoint written by asegnet-fast, got another file")
    return content


def build_network(model: str, keywords: dict[str, Any]) -> nn.Module:
    """Build `segnet` or `a_segnet` in the memory format training uses.

    Args:
        model: `segnet` or `a_segnet`.
        keywords: the class's keyword arguments.
    """
    from asegnet_fast.models import ASegNet, SegNet

    network = {"segnet": SegNet, "a_segnet": ASegNet}[model](**keywords)
    return network.to(memory_format=torch.channels_last)


def load_network(content: dict[str, Any]) -> nn.Module:
    """The network of a checkpoint, with its weights, in evaluation mode on the CPU."""
    network = build_network(content["model"], content["network"])
    network.load_state_dict(content["state_dict"])
    return network.eval()


def normalised(images: torch.Tensor, normalisation: dict[str, float]) -> torch.Tensor:
    """Bring slices to the network's input: (image - mean) / sd.

    Args:
        images: uint8 [N, H, W].
        normalisation: {"mean", "sd"} of the training slices' pixels, in 0..255.

    Returns:
        float32 [N, 1, H, W].
    """
    return images.float().sub_(normalisation["mean"]).div_(normalisation["sd"]).unsqueeze(1)
