"""Input data: images, cached codes, the order of batches; and sample sheets."""

from resgen.data.codes.cache import CachePlan, CodeCache, open_codes
from resgen.data.codes.encoding import write_codes
from resgen.data.loader import CounterSampler
from resgen.data.pictures.grid import picture_grid, save_picture
from resgen.data.pictures.sources import ImageSource, available_splits, load_array, open_images, read_image

__all__ = [
    "CachePlan",
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
