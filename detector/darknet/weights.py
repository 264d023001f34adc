"""Darknet's .weights files: a header, then float32 for each convolution in file order.

Per convolution: biases (n); with normalisation also scales, running means and variances (n each); then the weights
(n, c / groups, k, k). All little endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detector.errors import InputError
from detector.files import write_atomically
from detector.models.layers import ConvBN

HEADER_BYTES = 20
"""From version 0.2 on; 16 before."""


@dataclass(frozen=True)
class WeightsHeader:
    """Version and images seen in training. `seen` has 64 bits from version 0.2 on, 32 bits before."""

    major: int = 0
    minor: int = 2
    revision: int = 5
    seen: int = 0

    def wide(self) -> bool:
        return self.major * 10 + self.minor >= 2

    def pack(self) -> bytes:
        return struct.pack("<iii" + ("Q" if self.wide() else "I"), self.major, self.minor, self.revision, self.seen)


def read_header(content: bytes, where: str) -> tuple[WeightsHeader, int]:
    """The header at the start of a file, and its length in bytes. Raises: InputError."""
    if len(content) < 16:
        raise InputError(f"{where}: is not a Darknet weights file: only {len(content)} bytes")
    major, minor, revision = struct.unpack_from("<iii", content)
    if not (0 <= major < 10 and 0 <= minor < 10 and major + minor > 0):
        raise InputError(f"{where}: is not a Darknet weights file: its header says version {major}.{minor}")
    length = 20 if major * 10 + minor >= 2 else 16
    if len(content) < length:
        raise InputError(f"{where}: is not a Darknet weights file: only {len(content)} bytes")
    (seen,) = struct.unpack_from("<Q" if length == HEADER_BYTES else "<I", content, 12)
    return WeightsHeader(major, minor, revision, seen), length


def read_weights(path: Path, convolutions: list[tuple[str, ConvBN]]) -> WeightsHeader:
    """Fills convolutions from a file; changes nothing if it does not fit.

    Raises:
        InputError: the file is missing, not a Darknet weights file, too short (names the incomplete layer) or too long
            (counts the surplus bytes).
    """
    check_size(path, convolutions)
    content = path.read_bytes()
    header, start = read_header(content, str(path))
    values = np.frombuffer(content, "<f4", offset=start)
    offset = 0
    for _, layer in convolutions:
        for tensor in _tensors(layer):
            part = values[offset : offset + tensor.numel()].astype(np.float32)
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(part).view(tensor.shape))
            offset += tensor.numel()
    return header


def check_size(path: Path, convolutions: list[tuple[str, ConvBN]]) -> None:
    """Raises: InputError unless the file is as long as these layers need."""
    payload, position = payload_size(path), 0
    for name, layer in convolutions:
        position += 4 * sum(tensor.numel() for tensor in _tensors(layer))
        if position > payload:
            raise InputError(
                f"{path}: ends {position - payload} bytes before {name} is complete; it is truncated or for another cfg"
            )
    if position < payload:
        raise InputError(f"{path}: {payload - position} bytes are left after the last layer; it is for another cfg")


def write_weights(path: Path, convolutions: list[tuple[str, ConvBN]], header: WeightsHeader) -> None:
    """Writes a file that `read_weights` and Darknet read. Raises: InputError when it cannot be written."""
    content = header.pack() + b"".join(_bytes(tensor) for _, layer in convolutions for tensor in _tensors(layer))
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def weights_size(convolutions: list[tuple[str, ConvBN]]) -> int:
    """Bytes of a version 0.2 file, to tell a complete download from a broken one."""
    return HEADER_BYTES + 4 * sum(tensor.numel() for _, layer in convolutions for tensor in _tensors(layer))


def payload_size(path: Path) -> int:
    """Bytes after the header of a weights file. Raises: InputError."""
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
        return path.stat().st_size - read_header(start, str(path))[1]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _bytes(tensor: Tensor) -> bytes:
    array: NDArray[np.float32] = tensor.detach().cpu().contiguous().numpy()
    return array.astype("<f4").tobytes()


def _tensors(layer: ConvBN) -> list[Tensor]:
    """The tensors of a convolution in the order of the file."""
    norm, weight = layer.norm, layer.conv.weight
    if isinstance(norm, nn.BatchNorm2d):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return [norm.bias, norm.weight, norm.running_mean, norm.running_var, weight]
    assert layer.conv.bias is not None
    return [layer.conv.bias, weight]
