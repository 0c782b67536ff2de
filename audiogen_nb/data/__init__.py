"""Sounds with captions. What most programs need of them is named here; the rest is in the modules of this package."""
from importlib import import_module
from typing import TYPE_CHECKING

from .clips import Clip, SoundFolder, collate, normalise_caption, random_crop, split_clips, unusable
from .refs import ClipRef, SoundSet

if TYPE_CHECKING:
    from .datasets import DATASETS, read_dataset

__all__ = ["Clip", "ClipRef", "DATASETS", "SoundFolder", "SoundSet", "collate", "normalise_caption", "random_crop", "read_dataset",
           "split_clips", "unusable"]


def __getattr__(name):
    "Import the readers of data sets when they are first asked for: the core does without them"
    if name in ("DATASETS", "read_dataset"):
        return getattr(import_module(".datasets", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
