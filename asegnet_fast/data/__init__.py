"""CT data in NIfTI: loading sets as slices, cross-validation folds, and a synthetic set."""

from asegnet_fast.data.errors import DataError
from asegnet_fast.data.folds import Folds, load_folds, make_folds, read_cases, save_folds
from asegnet_fast.data.header import NiftiFile, open_nifti
from asegnet_fast.data.intensity import resize_masks
from asegnet_fast.data.medseg import SliceSet, load_image, load_slices
from asegnet_fast.data.nifti import Volume, read_volume, write_volume
from asegnet_fast.data.phantom import write_phantom
from asegnet_fast.data.slice_labels import load_labels
from asegnet_fast.data.stream import read_slices, write_slices

__all__ = [
    "DataError",
    "Folds",
    "NiftiFile",
    "SliceSet",
    "Volume",
    "load_folds",
    "load_image",
    "load_labels",
    "load_slices",
    "make_folds",
    "open_nifti",
    "read_cases",
    "read_slices",
    "read_volume",
    "resize_masks",
    "save_folds",
    "write_phantom",
    "write_slices",
    "write_volume",
]
