"""The line of requests of one model, and the threads that compute them with its `Predictor`."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.data.images import decode_image, parse_header
from detector.errors import InputError
from detector.inference.predictor import Predictor
from detector.runtime.protocol import Pixels, ends_in_boxes
from detector.structures import Detections, Floats, Image

BOX_OUTPUTS = ("boxes", "scores", "labels", "image")
MEASURED = 200
"""Jobs over whose duration the waiting time is estimated."""


def name_outputs(outputs: Sequence[Floats]) -> dict[str, NDArray[Any]]:
    """A runtime's outputs by name: map_0, map_1, ... from fine to coarse, or those of a file that ends in boxes."""
    if ends_in_boxes(outputs):
        return dict(zip(BOX_OUTPUTS, outputs, strict=True))
    return {f"map_{number}": output for number, output in enumerate(outputs)}


class FullError(Exception):
    """The line is full. Args: seconds: when it is worth to ask again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class TooLateError(Exception):
    """The deadline had passed before the request was computed."""


@dataclass(frozen=True)
class Answer:
    """What was found in an image.

    Attributes:
        size_hw: of the image.
        detections: in its pixels.
        class_names: of the model that found them, which a reload may have replaced since.
        image: (H, W, 3) uint8 RGB, where the job asked for it.
    """

    size_hw: tuple[int, int]
    detections: Detections
    class_names: tuple[str, ...]
    image: Image | None


@dataclass
class Job:
    """A request.

    Attributes:
        content: bytes of an image file, to be decoded and detected; or pixels for the network alone.
        where: how messages call it.
        deadline: time.monotonic() after which nobody wants the answer.
        keep_image: whether the answer has the decoded image.
        answer: an `Answer`, or the network's outputs.
    """

    content: bytes | Pixels
    where: str = "image"
    deadline: float = float("inf")
    keep_image: bool = False
    answer: Future[Any] = field(default_factory=Future)

    @property
    def num_images(self) -> int:
        """How much of the line it takes."""
        return len(self.content) if isinstance(self.content, np.ndarray) else 1

    def joins(self, other: Job) -> bool:
        """Whether both can be computed as one batch."""
        return isinstance(self.content, bytes) and isinstance(other.content, bytes)


class Engine:
    """Computes jobs in their order. An idle engine adds no waiting; a busy one joins what waits into batches.

    Args:
        open_predictor: opens the model; called again by `load`.
        workers: threads.
        max_waiting: jobs beyond this are refused at once.
        max_batch: images that are computed together, if they wait already.
        max_pixels: of an image, by its header.

    Attributes:
        outputs: the network's: name -> type, and shape without the batch.
        computed, rejected, abandoned: images, requests that found the line full, images that nobody wanted any more.

    Raises:
        InputError: the model cannot be opened.
    """

    def __init__(
        self,
        open_predictor: Callable[[], Predictor],
        *,
        workers: int = 2,
        max_waiting: int = 64,
        max_batch: int = 1,
        max_pixels: int = 2**26,
    ) -> None:
        self._open = open_predictor
        self._max_waiting, self._max_batch, self._max_pixels = max_waiting, max_batch, max_pixels
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._durations: deque[float] = deque(maxlen=MEASURED)
        self._workers = workers
        self.computed = self.rejected = self.abandoned = 0
        self.batches: deque[int] = deque(maxlen=MEASURED)
        self.predictor = self._warm(open_predictor())
        self.loaded_at = time.time()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images in the line."""
        return sum(job.num_images for job in list(self._jobs))

    def submit(self, *jobs: Job) -> None:
        """Puts the images of one request into the line, all or none. Raises: FullError, InputError."""
        with self._changed:
            asked = sum(job.num_images for job in jobs)
            if asked > self._max_waiting:
                raise InputError(f"{asked} images in one request; at most {self._max_waiting} are allowed")
            if self._stopping or self.waiting + asked > self._max_waiting:
                self.rejected += 1
                mean = float(np.mean(self._durations)) if self._durations else 0.1
                raise FullError(max(mean * len(self._jobs) / self._workers, 0.1))
            self._jobs.extend(jobs)
            self._changed.notify(len(jobs))

    def load(self) -> None:
        """Opens the model's file again, and changes over when it works. Raises: InputError: it does not."""
        self.predictor = self._warm(self._open())
        self.loaded_at = time.time()

    def close(self) -> None:
        """Computes what waits, then ends the threads."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _warm(self, predictor: Predictor) -> Predictor:
        """A predictor that has run once, so that the first request does not wait."""
        black = np.zeros((1, *predictor.preprocess.size_hw, 3), np.uint8)
        predictor.predict(black[0])
        self.outputs = {
            name: (array.dtype, array.shape[1:]) for name, array in name_outputs(predictor.runtime.run(black)).items()
        }
        return predictor

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._stopping)
                if not self._jobs:
                    return
                batch = [self._jobs.popleft()]
                while self._jobs and len(batch) < self._max_batch and batch[0].joins(self._jobs[0]):
                    batch.append(self._jobs.popleft())
            self._compute([job for job in batch if self._is_wanted(job)])

    def _is_wanted(self, job: Job) -> bool:
        if not job.answer.set_running_or_notify_cancel():  # its client has gone
            self.abandoned += 1
            return False
        if job.deadline < time.monotonic():
            self.abandoned += 1
            job.answer.set_exception(TooLateError())
            return False
        return True

    def _compute(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        begun, predictor = time.perf_counter(), self.predictor
        try:
            if isinstance(jobs[0].content, np.ndarray):
                jobs[0].answer.set_result(predictor.runtime.run(jobs[0].content))
            else:
                self._detect(jobs, predictor)
        except Exception as error:  # a request must never end a thread
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(error)
        self.batches.append(len(jobs))
        self.computed += sum(job.num_images for job in jobs)
        self._durations.append((time.perf_counter() - begun) / len(jobs))

    def _detect(self, jobs: list[Job], predictor: Predictor) -> None:
        """Decodes and detects; an image that cannot be read is an answer for its own job only."""
        images: list[tuple[Job, Image]] = []
        for job in jobs:
            assert isinstance(job.content, bytes)
            try:
                images.append((job, self._decode(job.content, job.where)))
            except InputError as error:
                job.answer.set_exception(error)
        found: list[Detections] = predictor.predict_batch([image for _, image in images])
        for (job, image), detections in zip(images, found, strict=True):
            shown = image if job.keep_image else None
            job.answer.set_result(Answer(image.shape[:2], detections, predictor.class_names, shown))

    def _decode(self, content: bytes, where: str) -> Image:
        """Raises: InputError: it cannot be read as an image, or has more pixels than allowed."""
        if content:
            height, width = parse_header(content, where).size_hw
            if height * width > self._max_pixels:
                raise InputError(f"{where}: has {width}x{height} pixels; at most {self._max_pixels:,} are allowed")
        return decode_image(content, where)
