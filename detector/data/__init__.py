"""Data sets: annotation formats, augmentation, the order of the images."""

from detector.data.open import open_dataset

__all__ = ["open_dataset"]
