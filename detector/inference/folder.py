"""Detections in many images, written to one file: batched, resumable, and bad files do not stop the run.

During a run, every finished image is one line of JSON in OUT.partial. A run that was killed reads this file and resumes
after the last whole line. At the end the results are written to OUT and OUT.partial is removed.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from detector.data.images import read_image, read_image_size
from detector.errors import InputError
from detector.files import SHOWN_SUFFIXES, Finder, expand, list_images, read_list
from detector.structures import Detections, Image

FORMATS = (".json", ".jsonl")
READ_AHEAD_BATCHES = 2
PIXELS_AT_ONCE = 2**26
"""Of the images of a batch: 200 MB."""

Predict = Callable[[Sequence[Image]], list[Detections]]
Line = dict[str, Any]
"""What the record has of an image: its path, its size and detections, or an error."""
Compute = Callable[[Sequence[Path], set[str]], Iterator[list[Line]]]
"""From all images and the paths of those that are done to the lines of the others, in order, some at a time."""


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        images: images with a result, including those of an interrupted run.
        resumed: images that an interrupted run had already processed, including failed ones.
        failed: file and reason of each image that could not be read or predicted.
        detections: number of detections in all images.
    """

    images: int
    resumed: int
    failed: tuple[tuple[str, str], ...]
    detections: int


def find_images(source: str) -> list[Path]:
    """The image files that a user names.

    Args:
        source: a folder (with its subfolders), a text file with one path a line (`detector.files` has the rule), an
            image, or a pattern such as "photos/*.jpg" or "frame_%03d.jpg". A file that exists is never a pattern.

    Raises:
        InputError: the source does not exist, or has no images.
    """
    path = Path(source)
    if path.is_dir():
        images = list_images(path)
    elif path.suffix == ".txt" and path.is_file():
        finder = Finder(path.parent, Path())
        images = [finder.find(line) or Path(line) for line in read_list(path)]
    elif path.exists():
        images = [path]
    else:
        matching = expand(source)
        if matching is None:
            raise InputError(f"{source}: no such image, folder or list of images")
        images = matching
    if not images:
        raise InputError(f"{source}: no images found; expected {SHOWN_SUFFIXES}")
    return list(dict.fromkeys(images))


def check_out(out: Path) -> None:
    """Raises: InputError unless results can be written under this name."""
    if out.suffix not in FORMATS:
        raise InputError(f"--out {out}: expected a name that ends in .json (COCO) or .jsonl (one line per image)")
    if out.exists():
        raise InputError(f"--out {out}: exists already; move it first")


def predict_many(
    images: Sequence[Path],
    out: Path,
    compute: Compute,
    class_names: Sequence[str],
    *,
    settings: dict[str, Any],
    progress: bool = False,
) -> Report:
    """Runs over images and writes OUT: COCO JSON (.json), or one line of JSON per image (.jsonl).

    Args:
        images: image files, each once.
        out: file to write.
        compute: `compute_here`, or the same on many machines.
        class_names: in the order of the labels.
        settings: what the detections depend on (weights, thresholds); an interrupted run with others is not resumed.
        progress: show a bar on stderr.

    Raises:
        InputError: OUT exists or has another suffix, the OUT.partial of an earlier run does not fit, or another run is
            writing it.
    """
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    with partial.open("ab") as record:
        _lock(record, partial)
        check_out(out)  # another run may have finished it just now
        done = _open_partial(partial, settings)
        with tqdm(total=len(images), initial=len(done), desc="predict", unit="img", disable=not progress) as bar:
            for lines in compute(images, done):
                for line in lines:
                    record.write(json.dumps(line, allow_nan=False).encode() + b"\n")
                record.flush()
                bar.update(len(lines))
        report = _finish(partial, out, class_names, resumed=len(done))
        partial.unlink()
    return report


def compute_here(predict: Predict, class_names: Sequence[str], *, batch_size: int = 8) -> Compute:
    """Predicts in this process.

    Args:
        predict: returns the detections of some images, in pixels of each image.
        class_names: in the order of the labels.
        batch_size: images per call of `predict`.
    """

    def compute(images: Sequence[Path], done: set[str]) -> Iterator[list[Line]]:
        waiting = [path for path in images if str(path) not in done]
        with ThreadPoolExecutor(max_workers=2) as readers:
            for batch in _read_ahead(waiting, readers, batch_size):
                yield list(_predict_batch(batch, predict, class_names))

    return compute


def _lock(record: BinaryIO, partial: Path) -> None:
    """Locks the record against other runs while it is open. Raises: InputError: another run has locked it."""
    try:
        fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(record.fileno()), partial.stat()):
            return
    except (BlockingIOError, FileNotFoundError):
        pass  # it is being written, or was finished and removed between opening and locking
    raise InputError(f"{partial}: another run is writing it; wait for it or choose another --out")


def _read_ahead(
    paths: Sequence[Path], readers: ThreadPoolExecutor, batch_size: int
) -> Iterator[list[tuple[Path, Future[Image]]]]:
    """Batches of images that are read while the batch before is processed; fewer at a time where they are large."""
    ahead: list[list[tuple[Path, Future[Image]]]] = []
    for batch in _batches(paths, batch_size):
        ahead.append([(path, readers.submit(read_image, path)) for path in batch])
        if len(ahead) >= READ_AHEAD_BATCHES:
            yield ahead.pop(0)
    yield from ahead


def _batches(paths: Sequence[Path], batch_size: int) -> Iterator[list[Path]]:
    """The paths in batches of at most this size and `PIXELS_AT_ONCE`."""
    batch: list[Path] = []
    pixels = 0
    for path in paths:
        try:
            size = math.prod(read_image_size(path))
        except (InputError, OSError):
            size = 0  # reported when it is read
        if batch and (len(batch) == batch_size or pixels + size > PIXELS_AT_ONCE):
            yield batch
            batch, pixels = [], 0
        batch.append(path)
        pixels += size
    if batch:
        yield batch


def _predict_batch(
    batch: list[tuple[Path, Future[Image]]], predict: Predict, class_names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """One line per image of a batch, in its order."""
    lines: list[dict[str, Any]] = []
    images: list[Image] = []
    for path, reading in batch:
        try:
            image = reading.result()
        except (InputError, OSError) as error:
            lines.append({"image": str(path), "error": str(error)})
            continue
        lines.append({"image": str(path), "height": image.shape[0], "width": image.shape[1]})
        images.append(image)
    found = iter(_predict_each(predict, images))
    for line in lines:
        if "error" not in line:
            answer = next(found)
            if isinstance(answer, Detections):
                line["detections"] = to_rows(answer, class_names)
            else:
                line["error"] = answer
        yield line


def _predict_each(predict: Predict, images: list[Image]) -> list[Detections | str]:
    """Detections of each image, or why there are none: when a batch fails, its images are tried one by one."""
    if not images:
        return []
    try:
        return list(predict(images))
    except Exception as error:  # one image that makes a library fail must not affect the others
        if len(images) == 1:
            return [f"cannot be predicted: {' '.join(str(error).split())}"]
    return [answer for image in images for answer in _predict_each(predict, [image])]


def to_rows(detections: Detections, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Detections as plain values; those with an identity have it as "track_id"."""
    columns = zip(detections.boxes_xyxy.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
    rows = [{"box_xyxy": box, "score": score, "class": class_names[label]} for box, score, label in columns]
    if detections.track_ids is not None:
        rows = [{**row, "track_id": track} for row, track in zip(rows, detections.track_ids.tolist(), strict=True)]
    return rows


def _open_partial(partial: Path, settings: dict[str, Any]) -> set[str]:
    """Starts the record of a run, or cuts a half-written line off an old record; returns the finished images.

    Raises:
        InputError: the record is damaged, or belongs to a run with other settings.
    """
    if not partial.exists() or not partial.stat().st_size:
        partial.write_bytes(json.dumps({"settings": settings}).encode() + b"\n")
        return set()
    with partial.open("r+b") as record:
        end = _end_of_whole_lines(record)
        record.truncate(end)
    try:
        header, *lines = _lines(partial)
        same = header["settings"] == json.loads(json.dumps(settings))
        done = {line["image"] for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{partial}: is damaged; remove it to start over") from error
    if not same:
        raise InputError(f"{partial}: belongs to a run with another model or other settings; remove it to start over")
    return done


def _end_of_whole_lines(record: BinaryIO) -> int:
    """Where the last whole line ends."""
    end = 0
    for line in record:
        if line.endswith(b"\n"):
            end += len(line)
    return end


def _lines(partial: Path) -> Iterator[dict[str, Any]]:
    with partial.open("rb") as record:
        for line in record:
            yield json.loads(line)


def _finish(partial: Path, out: Path, class_names: Sequence[str], *, resumed: int) -> Report:
    """Turns the record into OUT, line by line, so that memory does not grow with the number of images."""
    trial = out.with_name(f".{out.name}.tmp")
    with trial.open("w", encoding="utf-8") as file:
        if out.suffix == ".jsonl":
            for line in islice(_lines(partial), 1, None):
                file.write(json.dumps(line) + "\n")
        else:
            _write_coco(partial, file.write, class_names)
        file.flush()
        os.fsync(file.fileno())
    trial.replace(out)
    failed, images, detections = [], 0, 0
    for line in islice(_lines(partial), 1, None):
        if "error" in line:
            failed.append((line["image"], line["error"]))
        else:
            images += 1
            detections += len(line["detections"])
    return Report(images, resumed, tuple(failed), detections)


def _write_coco(partial: Path, write: Callable[[str], Any], class_names: Sequence[str]) -> None:
    """COCO's layout: images, categories (from 1), annotations with bbox x, y, width, height, and a score each.

    Failed images are listed under `errors`, which COCO's readers ignore.
    """
    categories = {name: number for number, name in enumerate(class_names, start=1)}

    def write_list(key: str, items: Iterator[dict[str, Any]], end: str) -> None:
        write(f"{json.dumps(key)}: [")
        for number, item in enumerate(items):
            write(("," if number else "") + "\n" + json.dumps(item))
        write(f"\n]{end}\n")

    def read() -> Iterator[tuple[int, dict[str, Any]]]:
        lines = (line for line in islice(_lines(partial), 1, None) if "error" not in line)
        return enumerate(lines, start=1)

    def images() -> Iterator[dict[str, Any]]:
        for number, line in read():
            yield {"id": number, "file_name": line["image"], "height": line["height"], "width": line["width"]}

    def annotations() -> Iterator[dict[str, Any]]:
        """One for each detection, with the number of its image."""
        count = 0
        for number, line in read():
            for row in line["detections"]:
                x1, y1, x2, y2 = row["box_xyxy"]
                count += 1
                yield {
                    "id": count,
                    "image_id": number,
                    "category_id": categories[row["class"]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": row["score"],
                }

    def errors() -> Iterator[dict[str, Any]]:
        for line in islice(_lines(partial), 1, None):
            if "error" in line:
                yield {"file_name": line["image"], "error": line["error"]}

    write("{\n")
    write_list("images", images(), ",")
    write_list("categories", ({"id": number, "name": name} for name, number in categories.items()), ",")
    write_list("annotations", annotations(), ",")
    write_list("errors", errors(), "")
    write("}\n")
