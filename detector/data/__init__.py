"""Data sets: annotation formats, augmentation and the order of the images."""
