"""CT data in NIfTI: loading sets as slices, cross-validation folds, and a synthetic set."""

from .errors import DataError
from .folds import Folds, load_folds, make_folds, save_folds
from .intensity import resize_masks
from .medseg import SliceSet, load_image, load_slices
from .nifti import Volume, read_volume, write_volume
from .phantom import write_phantom

__all__ = [
    "DataError",
    "Folds",
    "SliceSet",
    "Volume",
    "load_folds",
    "load_image",
    "load_slices",
    "make_folds",
    "read_volume",
    "resize_masks",
    "save_folds",
    "write_phantom",
    "write_volume",
]
