"""Predicting many images as work that can be sent to another process: how to open the model, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from detector.inference.find import Loaded, find_model, identity
from detector.inference.predictor import Predictor
from detector.inference.tiles import predict_tiled
from detector.postprocess import Thresholds
from detector.structures import Detections, Image


@dataclass(frozen=True)
class Work:
    """What `tools/predict.py` was asked for.

    Attributes:
        model, weights, names: see `find_model`.
        backend, device: see `Predictor`.
        thresholds: see `Thresholds`.
        tile: side of tiles in pixels; None = whole images.
        overlap: of neighbouring tiles, as a share of a side.
        batch: images at a time.
    """

    model: str | None
    weights: str | None
    names: str | None
    backend: str | None
    device: str
    thresholds: Thresholds
    tile: int | None
    overlap: float
    batch: int

    def load(self) -> Loaded:
        """The model. Raises: InputError: it is not here."""
        return find_model(self.model, self.weights, self.names)

    def settings(self, loaded: Loaded, runtime: str) -> dict[str, Any]:
        """What the detections depend on. Args: loaded: the model; runtime: what computes it."""
        return {
            "weights": loaded.path.name,
            "identity": identity(loaded),
            "backend": runtime,
            "score_threshold": self.thresholds.score_threshold,
            "multi_label": self.thresholds.multi_label,
            "tile": self.tile,
            "overlap": self.overlap if self.tile else None,
        }

    @property
    def batch_size(self) -> int:
        """Images at a time; one where they are cut into tiles, because they are large then."""
        return self.batch if self.tile is None else 1


class Worker:
    """A piece of work with its model open. Args: threads: images at once, where the backend does that well."""

    def __init__(self, work: Work, loaded: Loaded, threads: int) -> None:
        self._work = work
        self.predictor = Predictor.from_loaded(
            loaded, work.thresholds, backend=work.backend, device=work.device, streams=threads
        )
        self._pool = ThreadPoolExecutor(threads)

    def predict(self, images: Sequence[Image]) -> list[Detections]:
        """Detections of some images, whole or in tiles."""
        work, predictor = self._work, self.predictor
        side_by_side = predictor.runtime.name.startswith("openvino")  # faster than batches
        if work.tile is not None:
            pool = self._pool if side_by_side else None
            return [
                predict_tiled(predictor, image, tile=work.tile, overlap=work.overlap, threads=pool) for image in images
            ]
        return list(self._pool.map(predictor.predict, images)) if side_by_side else predictor.predict_batch(images)

    def close(self) -> None:
        self._pool.shutdown()
