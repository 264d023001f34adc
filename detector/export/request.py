"""What a user asks of an export, and whether it makes sense."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detector.config import ModelConfig
from detector.errors import InputError
from detector.inference.weights import LoadedDetector
from detector.postprocess import Thresholds
from detector.runtime.device import find_device
from detector.runtime.formats import FORMATS


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        to: a key of `FORMATS`.
        out: the file to write; its suffix is the format's.
        precision: fp32, fp16 (weights) or int8.
        size_hw: size of the network's input; None = as it was trained.
        batch: images per run; None = any number.
        dynamic: accept any height and width that are multiples of 32.
        suppression: not None = the graph ends in boxes.
        max_drop: largest drop of AP50, for int8.
        device: where the network runs that the file is compared with.
    """

    to: str
    out: Path
    precision: str = "fp32"
    size_hw: tuple[int, int] | None = None
    batch: int | None = 1
    dynamic: bool = False
    suppression: Thresholds | None = None
    max_drop: float = 0.01
    device: str = "cpu"


def check_request(loaded: LoadedDetector, request: Request) -> None:
    """Raises: InputError: the request makes no sense, or a file would be overwritten."""
    find_device(request.device)
    target = FORMATS[request.to]
    require_free(request.out, "--out", suffix=target.suffix, beside=target.beside)
    if request.precision not in target.precisions:
        raise InputError(
            f"--precision {request.precision}: {request.to} files are written in {', '.join(target.precisions)}"
        )
    graph_only = {"--with-nms": request.suppression is not None, "--dynamic": request.dynamic}
    for option, asked in graph_only.items():
        if asked and request.to == "darknet":
            raise InputError(f"{option}: a Darknet cfg cannot hold that; use --to onnx or openvino")
    if request.precision == "int8" and (request.suppression or request.dynamic or request.batch != 1):
        raise InputError("--precision int8: works with one size and batch 1 only; leave out --with-nms and --dynamic")
    if request.to == "darknet" and not isinstance(loaded.model, ModelConfig):
        raise InputError(f"{loaded.path}: is a Darknet model already")


def require_free(out: Path, option: str, *, suffix: str, beside: tuple[str, ...] = ()) -> None:
    """Checks the name of a file to write.

    Args:
        out: the file.
        option: what the user calls it.
        suffix: the suffix that it must have.
        beside: suffixes of the files that are written beside it.

    Raises:
        InputError: the suffix is wrong, or a file would be overwritten.
    """
    if out.suffix != suffix:
        raise InputError(f"{option} {out}: expected a name that ends in {suffix}")
    for path in (out, *(out.with_suffix(one) for one in beside)):
        if path.exists():
            raise InputError(f"{option} {path}: exists already; move it first, or choose another name")
