"""The Open Inference Protocol (v2) on HTTP: tensors in JSON, or as bytes after it.

https://github.com/kserve/open-inference-protocol, with the extension of binary tensors.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.errors import InputError

DATATYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "UINT16": np.uint16,
    "INT16": np.int16,
    "UINT32": np.uint32,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
}
NAMES = {np.dtype(kind): name for name, kind in DATATYPES.items()}
HEADER = "Inference-Header-Content-Length"
BYTES_LENGTH = 4
MAX_SIDES = 8
MAX_JSON = 2**22
"""Bytes: larger tensors come as bytes, which need no time to read."""


@dataclass(frozen=True)
class Call:
    """A request for inference.

    Attributes:
        id: returned with the answer.
        inputs: arrays by name; images of type BYTES as a list of files.
        outputs: names that are wanted and whether each comes as bytes; empty = all.
        binary: whether outputs come as bytes where none are named.
    """

    id: str
    inputs: dict[str, NDArray[Any] | list[bytes]]
    outputs: dict[str, bool]
    binary: bool


def parse_call(body: bytes, header_length: str | None) -> Call:
    """Reads a request.

    Args:
        body: JSON, and bytes after it.
        header_length: the value of the header `HEADER`; None = everything is JSON.

    Raises:
        InputError: it does not keep to the protocol.
    """
    length = len(body)
    if header_length is not None:
        if re.fullmatch(r"[0-9]{1,12}", header_length) is None or int(header_length) > len(body):
            raise InputError(f"{HEADER}: expected a length within the body, got {header_length[:40]!r}")
        length = int(header_length)
    if length > MAX_JSON:
        raise InputError(f"{length:,} bytes of JSON; at most {MAX_JSON:,}: send tensors as binary data")
    try:
        content = json.loads(body[:length])
        entries = content["inputs"]
        if not isinstance(entries, list) or not entries:
            raise InputError("inputs: expected a list of tensors")
        inputs, position = {}, length
        for entry in entries:
            size = (entry.get("parameters") or {}).get("binary_data_size")
            raw = None
            if size is not None:
                if not isinstance(size, int) or not 0 <= size <= len(body) - position:
                    raise InputError(f"inputs: {entry['name']}: binary_data_size {size!r} is not within the body")
                raw, position = body[position : position + size], position + size
            inputs[str(entry["name"])] = _read_tensor(entry, raw)
        outputs = {
            str(entry["name"]): bool((entry.get("parameters") or {}).get("binary_data", False))
            for entry in content.get("outputs") or []
        }
        binary = bool((content.get("parameters") or {}).get("binary_data_output", False))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"the body is not a request of the protocol: {type(error).__name__}: {error}") from error
    return Call(str(content.get("id", "")), inputs, outputs, binary)


def _read_tensor(entry: dict[str, Any], raw: bytes | None) -> NDArray[Any] | list[bytes]:
    """Raises: InputError; KeyError, TypeError, ValueError or OverflowError: it is not of the protocol's form."""
    name, shape, datatype = str(entry["name"]), entry["shape"], str(entry["datatype"])
    good = isinstance(shape, list) and len(shape) <= MAX_SIDES
    if not good or not all(isinstance(side, int) and 0 <= side < 2**31 for side in shape):
        raise InputError(f"inputs: {name}: expected a shape of at most {MAX_SIDES} sides, got {str(shape)[:60]}")
    count = math.prod(shape)
    if datatype == "BYTES":
        files = _split_bytes(raw, name) if raw is not None else [str(each).encode() for each in entry["data"]]
        if len(files) != count:
            raise InputError(f"inputs: {name}: expected {count} elements, got {len(files)}")
        return files
    if datatype not in DATATYPES:
        raise InputError(f"inputs: {name}: expected a datatype of {', '.join(DATATYPES)} or BYTES, got {datatype[:20]}")
    kind = np.dtype(DATATYPES[datatype])
    if raw is not None:
        if len(raw) != count * kind.itemsize:
            raise InputError(f"inputs: {name}: expected {count * kind.itemsize} bytes, got {len(raw)}")
        return np.frombuffer(raw, kind).reshape(shape)
    values = np.array(entry["data"])
    if values.size != count or values.dtype.kind not in "biuf":
        raise InputError(f"inputs: {name}: expected {count} numbers, got {values.size} of {values.dtype}")
    converted = values.astype(kind)
    if not np.array_equal(converted, values) and kind.kind in "biu":
        raise InputError(f"inputs: {name}: some values are not of {datatype}")
    return converted.reshape(shape)


def _split_bytes(raw: bytes, name: str) -> list[bytes]:
    """Elements, each after its length."""
    found, position = [], 0
    while position < len(raw):
        size = int.from_bytes(raw[position : position + BYTES_LENGTH], "little")
        position += BYTES_LENGTH
        if position + size > len(raw):
            raise InputError(f"inputs: {name}: an element is longer than the bytes that came")
        found.append(raw[position : position + size])
        position += size
    return found


def write_answer(call: Call, model: str, outputs: dict[str, NDArray[Any]]) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON if bytes follow it.

    Raises:
        InputError: an output was asked for that there is not.
    """
    unknown = [name for name in call.outputs if name not in outputs]
    if unknown:
        raise InputError(f"outputs: expected some of {', '.join(outputs)}, got {unknown[0][:40]}")
    wanted = call.outputs or dict.fromkeys(outputs, call.binary)
    entries, parts = [], []
    for name, binary in wanted.items():
        array = np.ascontiguousarray(outputs[name])
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": NAMES[array.dtype]}
        if binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            parts.append(array.tobytes())
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(
                f"outputs: {name}: has values that are not finite, which JSON cannot hold; ask for binary data"
            )
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    answer = {"model_name": model, "outputs": entries, **({"id": call.id} if call.id else {})}
    header = json.dumps(answer).encode()
    return (header + b"".join(parts), len(header)) if parts else (header, None)
