"""Data sets: annotation formats, augmentation, the order of the images."""
