"""The description of the service for programs (OpenAPI 3.1) and for people."""

from __future__ import annotations

from typing import Any

ERROR = {"type": "object", "properties": {"error": {"type": "string"}}}
DETECTION = {
    "type": "object",
    "properties": {
        "box_xyxy": {"type": "array", "items": {"type": "number"}, "description": "pixels of the image"},
        "score": {"type": "number"},
        "class": {"type": "string"},
    },
}
RESULT: dict[str, Any] = {
    "name": {"type": "string"},
    "height": {"type": "integer"},
    "width": {"type": "integer"},
    "detections": {"type": "array", "items": DETECTION},
}
RESULTS = {
    "type": "array",
    "description": "of a form: one for each file, with an error for a file that cannot be read",
    "items": {"type": "object", "properties": {**RESULT, "error": {"type": "string"}}},
}
IMAGE_BODY = {"schema": {"type": "string", "format": "binary"}}


ERRORS: dict[str, Any] = {
    str(status): {"description": text, "content": {"application/json": {"schema": ERROR}}}
    for status, text in (
        (400, "not an image, or not as expected"),
        (401, "the token is missing"),
        (403, "from another site's page, or for another host"),
        (404, "no such model"),
        (408, "the body came too slowly"),
        (413, "too many bytes"),
        (503, "the line of requests is full; Retry-After says for how long"),
        (504, "the deadline passed"),
    )
}
GOOD: dict[str, Any] = {"200": {"description": "good"}}


def describe(models: list[str]) -> dict[str, Any]:
    """The OpenAPI document. Args: models: their names."""
    names = {"type": "string", "enum": models}
    model = {"parameters": [{"name": "model", "in": "path", "required": True, "schema": names}]}
    infer = "Open Inference Protocol: images UINT8 [B,H,W,3] -> raw maps; files BYTES [B] -> boxes"
    paths: dict[str, dict[str, Any]] = {
        "/v1/detect": {"post": _detect(names)},
        "/v1/models": {"get": {"summary": "The models"}},
        "/v2/models/{model}": {"get": {"summary": "Open Inference Protocol: metadata", **model}},
        "/v2/models/{model}/infer": {"post": {"summary": infer, **model, "responses": {**GOOD, **ERRORS}}},
        "/v2/repository/models/{model}/load": {"post": {"summary": "Open the model's file again", **model}},
        "/healthz": {"get": {"summary": "Alive"}},
        "/readyz": {"get": {"summary": "Every model has run once"}},
        "/metrics": {"get": {"summary": "Prometheus"}},
    }
    described = {
        path: {method: {"responses": GOOD, **entry} for method, entry in methods.items()}
        for path, methods in paths.items()
    }
    return {"openapi": "3.1.0", "info": {"title": "detector", "version": "1"}, "paths": described}


def _detect(names: dict[str, Any]) -> dict[str, Any]:
    """POST /v1/detect. Args: names: the schema of a model's name."""
    result = {"type": "object", "properties": {**RESULT, "model": {"type": "string"}, "results": RESULTS}}
    files = {"type": "object", "properties": {"file": {"type": "array", "items": IMAGE_BODY["schema"]}}}
    kinds = dict.fromkeys(("image/jpeg", "image/png", "image/webp"), IMAGE_BODY)
    answer = {"application/json": {"schema": result}, "image/jpeg": IMAGE_BODY}
    return {
        "summary": "Objects in an image, or in several of a form",
        "parameters": [
            {"name": "model", "in": "query", "schema": names},
            {"name": "score_threshold", "in": "query", "schema": {"type": "number", "minimum": 0, "maximum": 1}},
            {"name": "format", "in": "query", "schema": {"type": "string", "enum": ["json", "jpeg"]}},
            {"name": "X-Timeout-Ms", "in": "header", "schema": {"type": "integer"}},
        ],
        "requestBody": {"content": {**kinds, "multipart/form-data": {"schema": files}}},
        "responses": {"200": {"description": "boxes, best first", "content": answer}, **ERRORS},
    }


DOCS = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>detector</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:800px;margin:2em auto;padding:0 1em}
code,pre{background:#f2f2f2;padding:2px 4px}img{max-width:100%}</style></head><body>
<h1>detector</h1>
<form id="form"><input type="file" name="file" accept="image/*" required> <button>Detect</button></form>
<p id="shown"></p>
<h2>Paths</h2><ul id="paths"></ul>
<pre>curl --data-binary @photo.jpg HOST/v1/detect</pre>
<p><a id="description">openapi.json</a></p>
<script>
const query = location.search;
document.getElementById("description").href = "openapi.json" + query;
const form = document.getElementById("form"), shown = document.getElementById("shown");
form.onsubmit = async (event) => {
  event.preventDefault();
  const answer = await fetch("v1/detect" + query, { method: "POST", body: new FormData(form) });
  const content = await answer.json();
  shown.textContent = answer.ok ? JSON.stringify(content.results[0].detections) : content.error;
};
fetch("openapi.json" + query).then((answer) => answer.json()).then((description) => {
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, entry] of Object.entries(methods)) {
      const item = document.createElement("li"), code = document.createElement("code");
      code.textContent = method.toUpperCase() + " " + path;
      item.append(code, " " + entry.summary);
      document.getElementById("paths").append(item);
    }
  }
});
</script></body></html>
"""
