"""The one table of the formats that detectors are exported to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Format:
    """A kind of exported file.

    Attributes:
        suffix: suffix of the file that the user names; it identifies the format.
        beside: suffixes of the files written beside it.
        precisions: what its weights can be stored in.
        backends: backends that open it, the default first; none for a Darknet cfg, which is opened like weights.
    """

    suffix: str
    beside: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp32",)
    backends: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format(
        ".onnx",
        precisions=("fp32", "fp16", "int8"),
        backends=("onnxruntime", "openvino", "openvino-bf16", "opencv"),
    ),
    "openvino": Format(
        ".xml",
        beside=(".bin",),
        precisions=("fp32", "fp16", "int8"),
        backends=("openvino", "openvino-bf16"),
    ),
    "darknet": Format(".cfg", beside=(".weights", ".names")),
}


def format_of(path: str | Path) -> str | None:
    """The key in `FORMATS` of a file, by its suffix; None for other files, such as our weights."""
    return next((name for name, one in FORMATS.items() if one.suffix == Path(path).suffix), None)


def is_export(path: str | Path) -> bool:
    """Whether a file's name is that of an exported file that a backend opens."""
    name = format_of(path)
    return name is not None and bool(FORMATS[name].backends)
