"""Sounds with captions. What most programs need of them is named here; the rest is in the modules of this package."""
from .clips import Clip, SoundFolder, collate, normalise_caption, random_crop, split_clips, unusable
from .refs import ClipRef, SoundSet

__all__ = ["Clip", "ClipRef", "SoundFolder", "SoundSet", "collate", "normalise_caption", "random_crop", "split_clips", "unusable"]
