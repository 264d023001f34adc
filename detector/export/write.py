"""From weights to an exported file that agreed with them, or to a report of the first layer that does not.

Legend: B images.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import onnx
import torch
from torch import nn

from detector import __version__
from detector.backends import open_runtime
from detector.checkpoint import write_atomically
from detector.config import ModelConfig, PreprocessConfig
from detector.darknet.export import export_detector as to_cfg
from detector.errors import InputError
from detector.export.layers import first_difference, run_export_layers, run_layers
from detector.export.verify import TOLERANCES, Agreement, Tolerances, compare, compare_detections, widened
from detector.load import LoadedDetector, load_any
from detector.models.layers import fold_batchnorm
from detector.predict import Predictor
from detector.runtime import Pixels, Runtime
from detector.runtime.onnx_graph import set_record, to_half, to_onnx
from detector.runtime.record import ExportRecord, Suppression, record_path
from detector.runtime.torch_backend import RECORD_FILE, TorchRuntime

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".torchscript", "darknet": ".cfg"}
PRECISIONS = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "int8"),
    "torchscript": ("fp32",),
    "darknet": ("fp32",),
}
SIDECARS = {"openvino": (".bin",), "darknet": (".weights", ".names")}
MAX_COMPARED_PICTURES = 16
"""AP50 of a runtime with raw maps on the images of these indices."""


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        to: onnx, openvino, torchscript or darknet.
        out: the file to write; its ending is the format's.
        precision: fp32, fp16 (weights) or int8.
        size_hw: of the network's input; None = as it was trained.
        batch: images of one run; None = any number.
        dynamic: any height and width that are multiples of 32.
        suppression: not None = the graph ends in boxes.
        max_drop: of AP50, for int8.
    """

    to: str
    out: Path
    precision: str = "fp32"
    size_hw: tuple[int, int] | None = None
    batch: int | None = 1
    dynamic: bool = False
    suppression: Suppression | None = None
    max_drop: float = 0.01


class MeasureAP50(Protocol):
    """See `Evidence`."""

    def __call__(self, runtime: Runtime, indices: Sequence[int], suppression: Suppression | None = None) -> float: ...


@dataclass(frozen=True)
class Evidence:
    """What the gate looks at.

    Attributes:
        pictures: (B, H, W, 3) uint8 RGB of the network's size.
        origin: where they come from, for the record.
        measure: measures AP50 of a runtime on the images of these indices, with the config's thresholds or those of a
            suppression; None = there are no labels.
        num_images: that `measure` knows.
    """

    pictures: Pixels
    origin: str
    measure: MeasureAP50 | None = None
    num_images: int = 0


def export(loaded: LoadedDetector, request: Request, evidence: Evidence) -> dict[str, Any]:
    """Writes an export that agrees with the network; its record goes into the file and beside it.

    Args:
        loaded: the weights.
        request: what to write.
        evidence: what to compare on.

    Returns:
        what was written and measured.

    Raises:
        InputError: the request makes no sense, the file exists, or the export does not agree (nothing is left behind
            but OUT.refused.json, which names the first layer that differs).
    """
    check_request(loaded, request)
    allowed = TOLERANCES[request.precision]
    if request.precision == "int8":
        allowed = replace(allowed, ap50=request.max_drop)
    record = ExportRecord(
        class_names=loaded.class_names,
        preprocess=replace(loaded.preprocess, size_hw=request.size_hw or loaded.preprocess.size_hw),
        decoder=loaded.decoder,
        precision=request.precision,
        batch=request.batch,
        dynamic=request.dynamic,
        suppression=request.suppression,
        source={"file": loaded.path.name, "sha256": sha256(loaded.path), "program": f"detector {__version__}"},
        gate={"pictures": evidence.origin, "tolerances": vars(allowed)},
        info=dict(loaded.info),
    )
    request.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=request.out.parent, prefix=f".{request.out.name}.") as folder:
        trial = Path(folder) / request.out.name
        try:
            notes = _convert(loaded, record, evidence, trial)
            agreement = _compare(loaded, record, evidence, trial, allowed)
        except InputError:
            raise
        except Exception as error:  # the libraries' exceptions have no common class
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{request.out}: cannot be made: {type(error).__name__}: {reason}") from error
        measured = {**agreement.as_dict(), **notes}
        complaints = agreement.complaints(allowed, only_losses=request.precision == "int8")
        if request.suppression is not None and agreement.boxes == agreement.on_limit:
            complaints.append("not one box to compare; give --data with pictures that show objects")
        if complaints:
            _refuse(loaded, record, evidence, trial, request.out, measured, complaints)
        beside = {**json.loads(record.to_json()), "measured": measured, "files": hashes(Path(folder))}
        record_path(trial).write_text(json.dumps(beside, indent=2), encoding="utf-8")
        files = sorted(Path(folder).iterdir())
        written = [str(path.replace(request.out.parent / path.name)) for path in files]
    refusal_path(request.out).unlink(missing_ok=True)
    return {"written": written, "bytes": sum(Path(path).stat().st_size for path in written), **measured}


def refusal_path(out: Path) -> Path:
    """Where the report of a refused export lies."""
    return out.with_name(f"{out.name}.refused.json")


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """Of all files in a folder, by name."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


def check_request(loaded: LoadedDetector, request: Request) -> None:
    """Raises: InputError: the request makes no sense, or a file would be overwritten."""
    if request.out.suffix != ENDINGS[request.to]:
        raise InputError(f"--out {request.out}: expected a name that ends in {ENDINGS[request.to]}")
    if request.out.exists():
        raise InputError(f"--out {request.out}: exists already; move it first")
    for ending in SIDECARS.get(request.to, ()):
        beside = request.out.with_suffix(ending)
        if beside.exists():
            raise InputError(f"{beside}: exists already; move it first, or choose another --out")
    if request.precision not in PRECISIONS[request.to]:
        possible = ", ".join(PRECISIONS[request.to])
        raise InputError(f"--precision {request.precision}: {request.to} files are written in {possible}")
    graph_only = {"--with-nms": request.suppression is not None, "--dynamic": request.dynamic}
    for option, asked in graph_only.items():
        if asked and request.to == "darknet":
            raise InputError(f"{option}: a Darknet cfg cannot hold that; use --to onnx or openvino")
    if request.suppression is not None and request.to == "torchscript":
        raise InputError("--with-nms: is for --to onnx and openvino")
    if request.precision == "int8" and (request.suppression or request.dynamic or request.batch != 1):
        raise InputError("--precision int8: goes with one size, batch 1 and without --with-nms")
    if request.to == "darknet" and not isinstance(loaded.model, ModelConfig):
        raise InputError(f"{loaded.path}: is a Darknet model already")


def _convert(loaded: LoadedDetector, record: ExportRecord, evidence: Evidence, out: Path) -> dict[str, Any]:
    """Writes the file; returns what is worth noting about it."""
    if out.suffix == ".torchscript":
        return _write_script(loaded.network, record, out)
    if out.suffix == ".cfg":
        return _write_darknet(loaded, record.preprocess, out)
    graph = to_onnx(
        loaded.network,
        record.preprocess.size_hw,
        batch=record.batch,
        dynamic=record.dynamic,
        ending=None if record.suppression is None else (record.decoder, record.suppression),
    )
    if out.suffix == ".onnx":
        return _write_onnx(graph, record, evidence, out)
    return _write_openvino(graph, record, evidence, out)


def _write_script(network: nn.Module, record: ExportRecord, out: Path) -> dict[str, Any]:
    batch = record.batch or 2
    example = torch.rand(batch, 3, *record.preprocess.size_hw)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TracerWarning: shapes that were read; the gate runs another size, too
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            fold_batchnorm(network).cpu(), example
        )
        torch.jit.save(traced, str(out), _extra_files={RECORD_FILE: record.to_json()})
    return {}


def _write_darknet(loaded: LoadedDetector, preprocess: PreprocessConfig, out: Path) -> dict[str, Any]:
    assert isinstance(loaded.model, ModelConfig)
    exported = to_cfg(loaded.network, loaded.model, preprocess)  # type: ignore[arg-type]
    out.write_text(exported.cfg_text, encoding="utf-8")
    exported.save_weights(out.with_suffix(".weights"))
    out.with_suffix(".names").write_text("".join(f"{name}\n" for name in loaded.class_names), encoding="utf-8")
    return {}


def _write_onnx(graph: onnx.ModelProto, record: ExportRecord, evidence: Evidence, out: Path) -> dict[str, Any]:
    notes: dict[str, Any] = {}
    if record.precision == "fp16":
        graph = to_half(graph)
    elif record.precision == "int8":
        from detector.export.quantize import quantize

        graph, notes = quantize(graph, *_budget(record, evidence))
    set_record(graph, record.to_json())
    onnx.save(graph, str(out))
    return notes


def _write_openvino(graph: onnx.ModelProto, record: ExportRecord, evidence: Evidence, out: Path) -> dict[str, Any]:
    from detector.export.openvino_model import save_openvino, to_openvino

    model = to_openvino(graph)
    notes: dict[str, Any] = {}
    if record.precision == "int8":
        from detector.export.quantize import quantize

        model, notes = quantize(model, *_budget(record, evidence))
    save_openvino(model, out, record.to_json(), fp16=record.precision == "fp16")
    return notes


def _budget(record: ExportRecord, evidence: Evidence) -> tuple[Pixels, int, MeasureAP50, float]:
    if evidence.measure is None:
        raise InputError("--precision int8: needs --data PATH, labelled pictures to measure AP50 on")
    return evidence.pictures, evidence.num_images, evidence.measure, record.gate["tolerances"]["ap50"]


def _compare(
    loaded: LoadedDetector, record: ExportRecord, evidence: Evidence, trial: Path, allowed: Tolerances
) -> Agreement:
    """Runs the network and the file that was written on the same pictures."""
    reference, candidate = TorchRuntime(loaded.network), _open(trial, record)
    pictures = evidence.pictures[:MAX_COMPARED_PICTURES]
    if record.suppression is not None:
        agreement = _compare_boxes(reference, candidate, record, pictures, allowed)
        return _with_ap50(agreement, reference, candidate, record, evidence)
    agreement = compare(reference, candidate, pictures, record.decoder, allowed)
    if record.dynamic:  # another size and number, too
        half = max(record.preprocess.size_hw[0] // 64, 1) * 32
        other = compare(reference, candidate, np.ascontiguousarray(pictures[:2, :half]), record.decoder, allowed)
        agreement = agreement.worst_of(other)
    return _with_ap50(agreement, reference, candidate, record, evidence)


def _with_ap50(
    agreement: Agreement, reference: Runtime, candidate: Runtime, record: ExportRecord, evidence: Evidence
) -> Agreement:
    """Adds AP50 of both where there are labels; both with the thresholds of a graph that ends in boxes."""
    if evidence.measure is None:
        return agreement
    images = range(evidence.num_images)
    ap50, before = (evidence.measure(runtime, images, record.suppression) for runtime in (candidate, reference))
    return replace(agreement, ap50=ap50, ap50_reference=before)


def _open(trial: Path, record: ExportRecord) -> Runtime:
    """Reads a file as its users will. Raises: InputError: what it says about itself is not what was to be written."""
    loaded = load_any(trial)
    same = loaded.class_names == record.class_names and loaded.preprocess.size_hw == record.preprocess.size_hw
    for name in ("strides", "scale_xy", "new_coords"):
        same &= getattr(loaded.decoder, name) == getattr(record.decoder, name)
    for given, expected in zip(loaded.decoder.anchors_wh, record.decoder.anchors_wh, strict=True):
        same &= np.allclose(given, expected, rtol=1e-6)
    if not same:
        raise InputError(f"{trial.name}: refused, its classes, size, anchors or strides are not the network's")
    return open_runtime(loaded)


def _compare_boxes(
    reference: Runtime, candidate: Runtime, record: ExportRecord, pictures: Pixels, allowed: Tolerances
) -> Agreement:
    """For graphs that end in boxes, with the thresholds that are part of them."""
    assert record.suppression is not None
    found = []
    for runtime, limits in ((reference, widened(record.suppression)), (candidate, record.suppression)):
        predictor = Predictor.from_runtime(
            runtime,
            decoder=record.decoder,
            preprocess=record.preprocess,
            class_names=record.class_names,
            **vars(limits),
        )
        found.append([predictor.predict(picture) for picture in pictures])
    return compare_detections(list(zip(*found, strict=True)), record.suppression, allowed)


def _refuse(
    loaded: LoadedDetector,
    record: ExportRecord,
    evidence: Evidence,
    trial: Path,
    out: Path,
    measured: dict[str, Any],
    complaints: list[str],
) -> NoReturn:
    """Writes the report and raises; the trial files go with their folder."""
    allowed = record.gate["tolerances"]["maps"]
    try:
        picture = np.repeat(evidence.pictures[:1], record.batch or 1, axis=0)
        expected = run_layers(loaded.network, picture)
        first = first_difference(expected, run_export_layers(trial, loaded.network, picture, expected), allowed)
    except Exception as error:  # whatever the libraries raise; the refusal itself stands
        first = {"layer": f"unknown ({' '.join(str(error).split())})"}
    measured = {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in measured.items()
    }
    report = {"refused": complaints, "first_layer_that_differs": first, "measured": measured, **record.gate}
    write_atomically(refusal_path(out), json.dumps(report, indent=2).encode())
    where = "every layer agrees by itself" if first is None else f"the first layer that differs is {first['layer']}"
    raise InputError(f"{out}: refused: {'; '.join(complaints)}; {where}; report in {refusal_path(out)}")
