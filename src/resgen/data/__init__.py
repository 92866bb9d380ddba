"""Data in and out: pictures, cached codes, the order of batches, sample sheets."""

from resgen.data.codes import CodeCache, open_codes, write_codes
from resgen.data.grid import picture_grid, save_picture
from resgen.data.images import ImageSource, available_splits, load_array, open_images, read_image
from resgen.data.loader import CounterSampler

__all__ = [
    "CodeCache",
    "CounterSampler",
    "ImageSource",
    "available_splits",
    "load_array",
    "open_codes",
    "open_images",
    "picture_grid",
    "read_image",
    "save_picture",
    "write_codes",
]
