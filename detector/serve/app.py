"""The ASGI application: images in, boxes out, by plain HTTP and by the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

import cv2
from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from detector.errors import InputError
from detector.inference.folder import to_rows
from detector.render import draw
from detector.serve.engine import Answer, Engine, FullError, Job, TooLateError
from detector.serve.inference_protocol import Endpoint, InferenceProtocol
from detector.serve.metrics import Metrics
from detector.serve.openapi import DOCS, describe
from detector.serve.requests import GoneError, Limits, answers_of, is_form, read_deadline, read_images, read_score

JPEG_QUALITY = 90
CLIENT_GONE = 499
"""The status in the metrics; nobody reads it."""
_LOG = logging.getLogger("uvicorn.error")


class Service:
    """Models by name behind one application.

    Args:
        engines: of each model.
        limits: for every request.

    Attributes:
        app: the application.
    """

    def __init__(self, engines: Mapping[str, Engine], limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self.engines, self.limits = engines, limits
        self._metrics = Metrics(engines)
        routes = [
            ("/", "GET", self.docs),
            ("/docs", "GET", self.docs),
            ("/openapi.json", "GET", self.openapi),
            ("/metrics", "GET", self.metrics),
            ("/v1/models", "GET", self.models),
            ("/v1/detect", "POST", self.detect),
            # The socket is opened when every model has run once, so who is answered finds them ready.
            *((path, "GET", self.healthy) for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")),
            *InferenceProtocol(self._engine, list(engines), limits).routes(),
        ]
        self.app = Starlette(
            routes=[Route(path, self._answered(path, function), methods=[method]) for path, method, function in routes]
        )

    def _answered(self, path: str, function: Endpoint) -> Endpoint:
        """An endpoint whose errors are JSON and whose answers are counted."""

        async def endpoint(request: Request) -> Response:
            begun = time.perf_counter()
            try:
                response = await function(request)
            except FullError as error:
                seconds = str(max(1, round(error.seconds)))
                response = _refuse(503, "the line of requests is full", {"Retry-After": seconds})
            except TooLateError:
                response = _refuse(504, "the deadline passed before the request was computed")
            except HTTPException as error:
                response = _refuse(error.status_code, error.detail)
            except InputError as error:
                response = _refuse(400, str(error))
            except (ClientDisconnect, GoneError):
                response = Response(status_code=CLIENT_GONE)
            except Exception:
                _LOG.exception("%s failed", path)
                response = _refuse(500, "internal error; the server's log has more")
            self._metrics.count(path, response.status_code, time.perf_counter() - begun)
            return response

        return endpoint

    def _engine(self, name: str | None) -> tuple[str, Engine]:
        """Raises: HTTPException: there is no such model."""
        if name is None:
            return next(iter(self.engines.items()))
        if name not in self.engines:
            raise HTTPException(404, f"no model {name[:100]}; there are {', '.join(self.engines)}")
        return name, self.engines[name]

    async def detect(self, request: Request) -> Response:
        """POST /v1/detect."""
        name, engine = self._engine(request.query_params.get("model"))
        lowest, deadline = read_score(request), read_deadline(request, self.limits)
        form = request.query_params.get("format", "jpeg" if request.headers.get("accept") == "image/jpeg" else "json")
        if form not in ("json", "jpeg"):
            raise HTTPException(400, f"format: expected json or jpeg, got {form[:20]!r}")
        annotated = form == "jpeg"
        images = await read_images(request, self.limits)
        if annotated and len(images) > 1:
            raise HTTPException(400, "format=jpeg: expected one image")
        jobs = [Job(content, where, deadline, keep_image=annotated) for where, content in images]
        answers = await answers_of(request, engine, jobs)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        fatal = [error for error in errors if not isinstance(error, InputError) or len(answers) == 1]
        if fatal:
            raise fatal[0]
        if annotated:
            return await asyncio.to_thread(_draw, answers[0], lowest)
        results = [_result(where, answer, lowest) for (where, _), answer in zip(images, answers, strict=True)]
        return JSONResponse({"model": name, **({"results": results} if is_form(request) else results[0])})

    async def models(self, request: Request) -> Response:  # noqa: ARG002
        """GET /v1/models."""
        return JSONResponse(
            {
                name: {
                    "class_names": list(engine.predictor.class_names),
                    "size_hw": list(engine.predictor.preprocess.size_hw),
                    "backend": engine.predictor.runtime.name,
                    "score_threshold": engine.predictor.thresholds.score_threshold,
                    "loaded_at": engine.loaded_at,
                }
                for name, engine in self.engines.items()
            }
        )

    async def healthy(self, request: Request) -> Response:  # noqa: ARG002
        """GET /healthz, /readyz and the protocol's own."""
        return JSONResponse({"live": True, "ready": True})

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """GET /metrics."""
        return Response(generate_latest(self._metrics.registry), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:  # noqa: ARG002
        """GET /openapi.json."""
        return JSONResponse(describe(list(self.engines)))

    async def docs(self, request: Request) -> Response:  # noqa: ARG002
        """GET /docs."""
        return Response(DOCS, media_type="text/html")

    def close(self) -> None:
        """Computes what waits, then ends."""
        for engine in self.engines.values():
            engine.close()


def _refuse(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


def _result(where: str, answer: Answer | InputError, lowest: float) -> dict[str, Any]:
    if isinstance(answer, InputError):
        return {"name": where, "error": str(answer)}
    height, width = answer.size_hw
    rows = to_rows(answer.detections.above(lowest), answer.class_names)
    return {"name": where, "height": height, "width": width, "detections": rows}


def _draw(answer: Answer, lowest: float) -> Response:
    """The annotated image. Raises: InputError: it is too large for a JPEG."""
    assert answer.image is not None, "the job asked for it"
    canvas = draw(answer.image, answer.detections.above(lowest), answer.class_names)
    if max(canvas.shape[:2]) > 65_500:
        raise InputError(f"format=jpeg: at most 65,500 pixels a side, got {canvas.shape[1]}x{canvas.shape[0]}")
    content = cv2.imencode(".jpg", canvas[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return Response(content.tobytes(), media_type="image/jpeg")
