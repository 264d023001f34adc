"""What the service counts, in the words of Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from detector.serve.engine import Engine

BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
COUNTERS = {
    "computed": ("detector_images", "images computed"),
    "rejected": ("detector_rejected", "requests that found the line full"),
    "abandoned": ("detector_abandoned", "images whose client was gone or whose deadline had passed"),
}


class Metrics:
    """Counts of requests, and the engines' own figures. Attributes: registry: of all of them."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engines))
        self._requests = Counter("detector_requests", "requests by status", ["path", "status"], registry=self.registry)
        self._seconds = Histogram(
            "detector_request_seconds", "of accepted requests", ["path"], registry=self.registry, buckets=BUCKETS
        )

    def count(self, path: str, status: int, seconds: float) -> None:
        """Notes an answer."""
        self._requests.labels(path, str(status)).inc()
        if status == 200:
            self._seconds.labels(path).observe(seconds)


class _EngineCollector:
    """The engines' figures, read when they are asked for."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines

    def collect(self) -> list[Metric]:
        """All metrics now."""
        waiting = GaugeMetricFamily("detector_waiting", "images in the line", labels=["model"])
        batch = GaugeMetricFamily("detector_batch_size", "mean of the last batches", labels=["model"])
        counters = {name: CounterMetricFamily(*text, labels=["model"]) for name, text in COUNTERS.items()}
        for name, engine in self._engines.items():
            sizes = list(engine.batches)
            waiting.add_metric([name], engine.waiting)
            batch.add_metric([name], float(np.mean(sizes)) if sizes else 0.0)
            for attribute, family in counters.items():
                family.add_metric([name], getattr(engine, attribute))
        return [waiting, batch, *counters.values()]
