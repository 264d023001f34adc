"""The networks."""

from detector.models.build import build_classifier, build_detector

__all__ = ["build_classifier", "build_detector"]
