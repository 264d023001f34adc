"""The ASGI application: images in, boxes out, by plain HTTP and by the Open Inference Protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from detector.errors import InputError
from detector.inference.folder import to_rows
from detector.render import draw
from detector.runtime.protocol import ends_in_boxes
from detector.serve.engine import Engine, FullError, Job, TooLateError
from detector.serve.openapi import DOCS, describe
from detector.serve.tensors import HEADER, Call, parse_call, write_answer
from detector.structures import Detections, Floats, Image

MAX_IMAGES = 16
"""In one request."""
JPEG_QUALITY = 90
BOX_OUTPUTS = ("boxes", "scores", "labels", "image")
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        max_bytes: of a request's body.
        body_seconds: in which the body must arrive.
        deadline_seconds: after which an answer is not computed any more.
    """

    max_bytes: int = 32 * 2**20
    body_seconds: float = 10.0
    deadline_seconds: float = 30.0


class Service:
    """Models by name behind one application.

    Args:
        engines: of each model.
        limits: for every request.
    """

    def __init__(self, engines: Mapping[str, Engine], limits: Limits = Limits()) -> None:
        self.engines, self.limits = engines, limits
        self._registry = CollectorRegistry()
        self._registry.register(_EngineMetrics(engines))
        self._requests = Counter("detector_requests", "requests by answer", ["path", "status"], registry=self._registry)
        buckets = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
        self._latency = Histogram(
            "detector_request_seconds", "accepted requests", ["path"], registry=self._registry, buckets=buckets
        )
        self.app = self._build()

    def _build(self) -> Starlette:
        routes = [
            ("/", "GET", self.docs),
            ("/docs", "GET", self.docs),
            ("/openapi.json", "GET", self.openapi),
            ("/healthz", "GET", self.healthy),
            ("/readyz", "GET", self.healthy),  # the socket is opened when every model has run once
            ("/metrics", "GET", self.metrics),
            ("/v1/models", "GET", self.models),
            ("/v1/detect", "POST", self.detect),
            ("/v2", "GET", self.server_metadata),
            ("/v2/health/live", "GET", self.healthy),
            ("/v2/health/ready", "GET", self.healthy),
            ("/v2/models/{model}", "GET", self.model_metadata),
            ("/v2/models/{model}/ready", "GET", self.model_ready),
            ("/v2/models/{model}/infer", "POST", self.infer),
            ("/v2/repository/index", "POST", self.repository),
            ("/v2/repository/models/{model}/load", "POST", self.load),
        ]
        return Starlette(
            routes=[Route(path, self._counted(path, function), methods=[method]) for path, method, function in routes]
        )

    def _counted(self, path: str, function: Endpoint) -> Endpoint:
        """An endpoint whose errors are JSON and whose answers are counted."""

        async def endpoint(request: Request) -> Response:
            begun = time.perf_counter()
            try:
                response = await function(request)
            except FullError as error:
                seconds = str(max(1, round(error.seconds)))
                response = _refuse(503, "too many requests wait", {"Retry-After": seconds})
            except TooLateError:
                response = _refuse(504, "the deadline passed before the request was computed")
            except HTTPException as error:
                response = _refuse(error.status_code, error.detail)
            except InputError as error:
                response = _refuse(400, str(error))
            except (ClientDisconnect, _GoneError):
                response = Response(status_code=499)  # nobody reads it
            self._requests.labels(path, str(response.status_code)).inc()
            if response.status_code == 200:
                self._latency.labels(path).observe(time.perf_counter() - begun)
            return response

        return endpoint

    def _engine(self, name: str | None) -> tuple[str, Engine]:
        """Raises: HTTPException: there is no such model."""
        if name is None:
            return next(iter(self.engines.items()))
        if name not in self.engines:
            raise HTTPException(404, f"no model {name[:100]}; there are {', '.join(self.engines)}")
        return name, self.engines[name]

    async def _body(self, request: Request) -> bytes:
        """The whole body. Raises: HTTPException: too long, or too slow."""
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self.limits.max_bytes:
                        raise HTTPException(413, f"at most {self.limits.max_bytes:,} bytes are allowed")
                    chunks.append(chunk)
        except TimeoutError as error:
            raise HTTPException(408, f"the body did not arrive in {self.limits.body_seconds:g} s") from error
        return b"".join(chunks)

    async def _images(self, request: Request) -> list[tuple[str, bytes]]:
        """Names and contents of the images in a request. Raises: HTTPException."""
        body = await self._body(request)
        if not request.headers.get("content-type", "").startswith("multipart/"):
            return [("image", body)]

        async def whole() -> AsyncGenerator[bytes, None]:
            yield body

        try:
            form = await MultiPartParser(request.headers, whole(), max_files=MAX_IMAGES, max_fields=MAX_IMAGES).parse()
        except (MultiPartException, KeyError, UnicodeDecodeError) as error:
            raise HTTPException(400, f"the form cannot be read: {getattr(error, 'message', error)}") from error
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        found = [(file.filename or "image", await file.read()) for file in files]
        await form.close()
        if not found:
            raise HTTPException(400, "the form has no file in it")
        return found

    async def _answers(self, request: Request, engine: Engine, jobs: list[Job]) -> list[Any]:
        """Waits for answers, an error among them as such; gives up when the client goes."""
        engine.submit(*jobs)
        waiting = [asyncio.wrap_future(job.answer) for job in jobs]
        answers: asyncio.Future[list[Any]] = asyncio.gather(*waiting, return_exceptions=True)
        gone: asyncio.Future[None] = asyncio.ensure_future(_until_gone(request))
        try:
            await asyncio.wait((answers, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                for job in jobs:
                    job.answer.cancel()
                raise _GoneError
            return list(answers.result())
        finally:
            gone.cancel()

    def _deadline(self, request: Request) -> float:
        """From the header X-Timeout-Ms, or the default. Raises: HTTPException."""
        text = request.headers.get("x-timeout-ms")
        if text is None:
            return time.monotonic() + self.limits.deadline_seconds
        if not text.isdigit() or len(text) > 8:
            raise HTTPException(400, f"X-Timeout-Ms: expected milliseconds, got {text[:20]!r}")
        return time.monotonic() + int(text) / 1000

    async def detect(self, request: Request) -> Response:
        """POST /v1/detect."""
        name, engine = self._engine(request.query_params.get("model"))
        lowest = _score(request.query_params.get("score_threshold"))
        deadline = self._deadline(request)
        named = await self._images(request)
        jobs = [Job(content, where, deadline) for where, content in named]
        answers = await self._answers(request, engine, jobs)
        if len(answers) == 1 and isinstance(answers[0], BaseException):
            raise answers[0]
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, InputError):
                raise answer
        class_names = engine.predictor.class_names
        if request.query_params.get("format") == "jpeg" or request.headers.get("accept") == "image/jpeg":
            if len(answers) > 1:
                raise HTTPException(400, "format=jpeg: is for one image")
            image, found = answers[0]
            return await asyncio.to_thread(_annotated, image, found.above(lowest), class_names)
        results = [
            _result(where, answer, class_names, lowest) for (where, _), answer in zip(named, answers, strict=True)
        ]
        is_form = request.headers.get("content-type", "").startswith("multipart/")
        return JSONResponse({"model": name, **({"results": results} if is_form else results[0])})

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/NAME/infer."""
        name, engine = self._engine(request.path_params["model"])
        call = parse_call(await self._body(request), request.headers.get(HEADER))
        outputs = await self._infer(request, engine, call)
        body, length = write_answer(call, name, outputs)
        if length is None:
            return Response(body, media_type="application/json")
        return Response(body, media_type="application/octet-stream", headers={HEADER: str(length)})

    async def _infer(self, request: Request, engine: Engine, call: Call) -> dict[str, NDArray[Any]]:
        """The outputs by name. Raises: InputError: the input is not one of the model's."""
        (input_name, given), *more = call.inputs.items()
        deadline = self._deadline(request)
        if more or input_name not in ("images", "files"):
            raise InputError(f"inputs: expected images or files, got {', '.join(call.inputs)[:100]}")
        if isinstance(given, list) != (input_name == "files"):
            raise InputError("inputs: expected images as UINT8, or files as BYTES")
        if isinstance(given, list):
            if not 0 < len(given) <= MAX_IMAGES:
                raise InputError(f"inputs: files: expected 1 to {MAX_IMAGES}, got {len(given)}")
            jobs = [Job(content, f"files {number}", deadline) for number, content in enumerate(given)]
            answers = _without_errors(await self._answers(request, engine, jobs))
            return _as_tensors([found for _, found in answers])
        height, width = engine.predictor.preprocess.size_hw
        fits = given.dtype == np.uint8 and given.ndim == 4 and given.shape[1:] == (height, width, 3)
        if not fits or not 0 < len(given) <= MAX_IMAGES:
            raise InputError(
                f"inputs: images: expected UINT8 [1 to {MAX_IMAGES}, {height}, {width}, 3], got {given.dtype} "
                f"{list(given.shape)}"
            )
        job = Job(np.array(given), "images", deadline)
        (outputs,) = _without_errors(await self._answers(request, engine, [job]))
        return name_outputs(outputs)

    async def load(self, request: Request) -> Response:
        """POST /v2/repository/models/NAME/load: opens the model's file again."""
        _, engine = self._engine(request.path_params["model"])
        await asyncio.to_thread(engine.load)
        return JSONResponse({})

    async def repository(self, request: Request) -> Response:  # noqa: ARG002
        """POST /v2/repository/index."""
        return JSONResponse([{"name": name, "version": "1", "state": "READY"} for name in self.engines])

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

    async def model_metadata(self, request: Request) -> Response:
        """GET /v2/models/NAME."""
        name, engine = self._engine(request.path_params["model"])
        height, width = engine.predictor.preprocess.size_hw
        outputs = name_outputs(engine.predictor.runtime.run(np.zeros((1, height, width, 3), np.uint8)))
        return JSONResponse(
            {
                "name": name,
                "versions": ["1"],
                "platform": engine.predictor.runtime.name,
                "inputs": [
                    {"name": "images", "datatype": "UINT8", "shape": [-1, height, width, 3]},
                    {"name": "files", "datatype": "BYTES", "shape": [-1]},
                ],
                "outputs": [
                    {"name": key, "datatype": "FP32", "shape": [-1, *array.shape[1:]]} for key, array in outputs.items()
                ],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """GET /v2/models/NAME/ready."""
        self._engine(request.path_params["model"])
        return JSONResponse({"ready": True})

    async def server_metadata(self, request: Request) -> Response:  # noqa: ARG002
        """GET /v2."""
        extensions = ["binary_tensor_data", "model_repository"]
        return JSONResponse({"name": "detector", "version": version("detector"), "extensions": extensions})

    async def healthy(self, request: Request) -> Response:  # noqa: ARG002
        """GET /healthz, /readyz and the protocol's own."""
        return JSONResponse({"live": True, "ready": True})

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """GET /metrics."""
        return Response(generate_latest(self._registry), media_type="text/plain; version=0.0.4")

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


class _GoneError(Exception):
    """The client has closed its side."""


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refuse(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


def _score(text: str | None) -> float:
    """Raises: HTTPException: it is no score."""
    try:
        score = float(text) if text is not None else 0.0
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise HTTPException(400, f"score_threshold: expected 0 to 1, got {str(text)[:20]!r}")
    return score


def _result(where: str, answer: Any, class_names: tuple[str, ...], lowest: float) -> dict[str, Any]:
    if isinstance(answer, InputError):
        return {"name": where, "error": str(answer)}
    image, found = answer
    size = {"height": image.shape[0], "width": image.shape[1]}
    return {"name": where, **size, "detections": to_rows(found.above(lowest), class_names)}


def _annotated(image: Image, found: Detections, class_names: tuple[str, ...]) -> Response:
    canvas = draw(image, found, class_names)
    content = cv2.imencode(".jpg", canvas[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return Response(content.tobytes(), media_type="image/jpeg")


def _without_errors(answers: list[Any]) -> list[Any]:
    """Raises: the first error among them."""
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


def name_outputs(outputs: list[Floats]) -> dict[str, NDArray[Any]]:
    """A runtime's outputs by name: map_0, map_1, ... from fine to coarse, or those of a file that ends in boxes."""
    if ends_in_boxes(outputs):
        return dict(zip(BOX_OUTPUTS, outputs, strict=True))
    return {f"map_{number}": output for number, output in enumerate(outputs)}


def _as_tensors(found: list[Detections]) -> dict[str, NDArray[Any]]:
    """Boxes in pixels of each file, of all files together, and which file each is of."""
    numbers = [np.full(len(each), number, np.int64) for number, each in enumerate(found)]
    return {
        "boxes": np.concatenate([each.boxes_xyxy for each in found]),
        "scores": np.concatenate([each.scores for each in found]),
        "labels": np.concatenate([each.labels for each in found]),
        "image": np.concatenate(numbers),
    }


class _EngineMetrics:
    """The engines in the words of Prometheus, read when they are asked for."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines

    def collect(self) -> list[Metric]:
        """All metrics now."""
        waiting = GaugeMetricFamily("detector_waiting", "images in the line", labels=["model"])
        batch = GaugeMetricFamily("detector_batch_size", "mean of the last batches", labels=["model"])
        computed = CounterMetricFamily("detector_images", "images computed", labels=["model"])
        rejected = CounterMetricFamily("detector_rejected", "requests that found the line full", labels=["model"])
        abandoned = CounterMetricFamily(
            "detector_abandoned", "images whose client was gone or whose deadline had passed", labels=["model"]
        )
        for name, engine in self._engines.items():
            sizes = list(engine.batches)
            waiting.add_metric([name], engine.waiting)
            batch.add_metric([name], float(np.mean(sizes)) if sizes else 0.0)
            computed.add_metric([name], engine.computed)
            rejected.add_metric([name], engine.rejected)
            abandoned.add_metric([name], engine.abandoned)
        return [waiting, batch, computed, rejected, abandoned]
