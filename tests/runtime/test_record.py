"""The record of an export: it survives a round trip, and a foreign record is a one-line error."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detector.config import PreprocessConfig
from detector.errors import InputError
from detector.postprocess import Decoder, Thresholds
from detector.runtime.record import ExportRecord


def record(suppression: Thresholds | None = None) -> ExportRecord:
    anchors = (np.array([[10, 14], [23, 27.5]], np.float32), np.array([[81, 82]], np.float32))
    return ExportRecord(
        class_names=("cat", "hund"),
        preprocess=PreprocessConfig((320, 416), letterbox=True, align_corners=True),
        decoder=Decoder(anchors, (8, 16), (1.0, 1.05), nms_beta=0.6),
        precision="fp16",
        batch=None,
        dynamic=True,
        suppression=suppression,
        source={"file": "x.safetensors", "sha256": "ab"},
        gate={"tolerances": {"maps": 0.1}},
        info={"step": 7},
    )


@pytest.mark.parametrize("suppression", [None, Thresholds(0.25, 0.5, 10)])
def test_round_trip(suppression: Thresholds | None) -> None:
    before = record(suppression)
    assert before.decoder.anchor_table.shape == (3, 4), "derived values are not recorded"
    after = ExportRecord.from_json(before.to_json(), "x.onnx")
    assert after.to_json() == before.to_json()
    assert after.suppression == suppression
    assert after.preprocess == before.preprocess
    assert after.decoder.anchors_wh[0].tolist() == [[10, 14], [23, 27.5]]
    assert after.decoder.anchors_wh[0].dtype == np.float32


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"format": "other"}', "no json"])
def test_a_foreign_record_is_refused(text: str | None) -> None:
    with pytest.raises(InputError, match=r"x\.onnx: holds no record of tools/export\.py"):
        ExportRecord.from_json(text, "x.onnx")


def test_a_missing_field_is_refused() -> None:
    content = json.loads(record().to_json())
    del content["decoder"]["strides"]
    with pytest.raises(InputError, match="holds no record"):
        ExportRecord.from_json(json.dumps(content), "x.onnx")
