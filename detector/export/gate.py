"""The gate: an export is kept only if it agrees with the weights; else a report names the first layer that differs.

Legend: B images.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from detector import __version__
from detector.errors import InputError
from detector.export.agreement import TOLERANCES, Agreement, Tolerances, compare, compare_detections, widen_thresholds
from detector.export.formats import write_format
from detector.export.gate_data import GateData
from detector.export.layer_diff import first_difference, run_export_layers, run_layers
from detector.export.request import Request, check_request
from detector.files import write_atomically
from detector.inference.backends import open_runtime
from detector.inference.find import load_any
from detector.inference.predictor import Predictor
from detector.inference.weights import LoadedDetector
from detector.runtime.protocol import Pixels, Runtime
from detector.runtime.record import ExportRecord, record_path

MAX_COMPARED_IMAGES = 16


def export(loaded: LoadedDetector, request: Request, data: GateData) -> dict[str, Any]:
    """Writes an export that agrees with the network; its record goes into the file and beside it.

    Args:
        loaded: the weights.
        request: what to write.
        data: what to compare on.

    Returns:
        what was written and measured.

    Raises:
        InputError: the request makes no sense, the file exists, or the export does not agree (nothing is left
            but OUT.refused.json, which names the first layer that differs).
    """
    check_request(loaded, request)
    allowed = TOLERANCES[request.precision]
    if request.precision == "int8":
        allowed = replace(allowed, ap50=request.max_drop)
    record = _record(loaded, request, data, allowed)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=request.out.parent, prefix=f".{request.out.name}.") as folder:
        trial = Path(folder) / request.out.name
        try:
            notes = write_format(loaded, record, data, trial)
            reference = open_runtime(loaded, "torch", device=request.device)
            agreement = _compare(reference, record, data, trial, allowed)
        except InputError:
            raise
        except Exception as error:  # the libraries' exceptions have no common class
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{request.out}: the export failed: {type(error).__name__}: {reason}") from error
        measured = {**agreement.as_dict(), **notes}
        complaints = agreement.complaints(allowed, only_losses=request.precision == "int8")
        if request.suppression is not None and agreement.boxes == agreement.on_limit:
            complaints.append("no box to compare; give --data with images that show objects")
        if complaints:
            _refuse(loaded, record, data, trial, request.out, measured, complaints)
        beside = {**json.loads(record.to_json()), "measured": measured, "files": hashes(Path(folder))}
        record_path(trial).write_text(json.dumps(beside, indent=2), encoding="utf-8")
        files = sorted(Path(folder).iterdir())
        written = [str(path.replace(request.out.parent / path.name)) for path in files]
    refusal_path(request.out).unlink(missing_ok=True)
    return {"written": written, "bytes": sum(Path(path).stat().st_size for path in written), **measured}


def _record(loaded: LoadedDetector, request: Request, data: GateData, allowed: Tolerances) -> ExportRecord:
    return ExportRecord(
        class_names=loaded.class_names,
        preprocess=replace(loaded.preprocess, size_hw=request.size_hw or loaded.preprocess.size_hw),
        decoder=loaded.decoder,
        precision=request.precision,
        batch=request.batch,
        dynamic=request.dynamic,
        suppression=request.suppression,
        source={"file": loaded.path.name, "sha256": sha256(loaded.path), "program": f"detector {__version__}"},
        gate={"images": data.origin, "tolerances": vars(allowed)},
        info=dict(loaded.info),
    )


def refusal_path(out: Path) -> Path:
    """Path of the report of a refused export."""
    return out.with_name(f"{out.name}.refused.json")


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """Hashes of all files in a folder, by name."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


def _compare(reference: Runtime, record: ExportRecord, data: GateData, trial: Path, allowed: Tolerances) -> Agreement:
    """Runs the network and the written file on the same images."""
    candidate = _open(trial, record)
    images = data.images[:MAX_COMPARED_IMAGES]
    if record.suppression is not None:
        agreement = _compare_boxes(reference, candidate, record, images, allowed)
        return _with_ap50(agreement, reference, candidate, record, data)
    agreement = compare(reference, candidate, images, record.decoder, allowed)
    if record.dynamic:  # also with another size and number of images
        half = max(record.preprocess.size_hw[0] // 64, 1) * 32
        other = compare(reference, candidate, np.ascontiguousarray(images[:2, :half]), record.decoder, allowed)
        agreement = agreement.worst_of(other)
    return _with_ap50(agreement, reference, candidate, record, data)


def _with_ap50(
    agreement: Agreement, reference: Runtime, candidate: Runtime, record: ExportRecord, data: GateData
) -> Agreement:
    """Adds AP50 of both if there are labels, with the graph's thresholds if it ends in boxes."""
    if data.measure is None:
        return agreement
    indices = range(data.num_images)
    ap50, before = (data.measure(runtime, indices, record.suppression) for runtime in (candidate, reference))
    return replace(agreement, ap50=ap50, ap50_reference=before)


def _open(trial: Path, record: ExportRecord) -> Runtime:
    """Reads a file as its users will. Raises: InputError: it does not describe the same detector."""
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
    reference: Runtime, candidate: Runtime, record: ExportRecord, images: Pixels, allowed: Tolerances
) -> Agreement:
    """For graphs that end in boxes, with the graph's own thresholds."""
    assert record.suppression is not None
    found = []
    for runtime, limits in ((reference, widen_thresholds(record.suppression)), (candidate, record.suppression)):
        predictor = Predictor.from_runtime(runtime, record, limits)
        found.append([predictor.predict(image) for image in images])
    return compare_detections(list(zip(*found, strict=True)), record.suppression, allowed)


def _refuse(
    loaded: LoadedDetector,
    record: ExportRecord,
    data: GateData,
    trial: Path,
    out: Path,
    measured: dict[str, Any],
    complaints: list[str],
) -> NoReturn:
    """Writes the report and raises; the trial files are removed with their folder."""
    allowed = record.gate["tolerances"]["maps"]
    try:
        image = np.repeat(data.images[:1], record.batch or 1, axis=0)
        expected = run_layers(loaded.network, image)
        first = first_difference(expected, run_export_layers(trial, loaded.network, image), allowed)
    except Exception as error:  # whatever the libraries raise; the export is refused anyway
        first = {"layer": f"unknown ({' '.join(str(error).split())})"}
    measured = {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in measured.items()
    }
    report = {"refused": complaints, "first_layer_that_differs": first, "measured": measured, **record.gate}
    write_atomically(refusal_path(out), json.dumps(report, indent=2).encode())
    where = "every single layer agrees" if first is None else f"the first layer that differs is {first['layer']}"
    raise InputError(f"{out}: refused: {'; '.join(complaints)}; {where}; report in {refusal_path(out)}")
