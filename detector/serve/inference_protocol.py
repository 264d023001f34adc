"""The paths of the Open Inference Protocol (v2): tensors in, tensors out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from detector.errors import InputError
from detector.serve.engine import Answer, Engine, Job, name_outputs
from detector.serve.requests import MAX_IMAGES, Limits, answers_of, read_body, read_deadline
from detector.serve.tensors import HEADER, NAMES, Call, parse_call, write_answer
from detector.structures import Detections

FindEngine = Callable[[str | None], tuple[str, Engine]]
Endpoint = Callable[[Request], Awaitable[Response]]


class InferenceProtocol:
    """Its endpoints.

    Args:
        find: an engine by its name.
        names: of the models.
        limits: for every request.
    """

    def __init__(self, find: FindEngine, names: list[str], limits: Limits) -> None:
        self._find, self._names, self._limits = find, names, limits

    def routes(self) -> list[tuple[str, str, Endpoint]]:
        """Path, method and endpoint of each."""
        return [
            ("/v2", "GET", self.server_metadata),
            ("/v2/models/{model}", "GET", self.model_metadata),
            ("/v2/models/{model}/ready", "GET", self.model_ready),
            ("/v2/models/{model}/infer", "POST", self.infer),
            ("/v2/repository/index", "POST", self.repository),
            ("/v2/repository/models/{model}/load", "POST", self.load),
        ]

    async def server_metadata(self, request: Request) -> Response:  # noqa: ARG002
        """What this server is."""
        extensions = ["binary_tensor_data", "model_repository"]
        return JSONResponse({"name": "detector", "version": version("detector"), "extensions": extensions})

    async def model_metadata(self, request: Request) -> Response:
        """Inputs and outputs of a model."""
        name, engine = self._find(request.path_params["model"])
        height, width = engine.predictor.preprocess.size_hw
        inputs = [
            {"name": "images", "datatype": "UINT8", "shape": [-1, height, width, 3]},
            {"name": "files", "datatype": "BYTES", "shape": [-1]},
        ]
        outputs = [
            {"name": key, "datatype": NAMES[kind], "shape": [-1, *shape]}
            for key, (kind, shape) in engine.outputs.items()
        ]
        platform = engine.predictor.runtime.name
        return JSONResponse(
            {"name": name, "versions": ["1"], "platform": platform, "inputs": inputs, "outputs": outputs}
        )

    async def model_ready(self, request: Request) -> Response:
        """A model is served only when it has run."""
        self._find(request.path_params["model"])
        return JSONResponse({"ready": True})

    async def repository(self, request: Request) -> Response:  # noqa: ARG002
        """All models."""
        return JSONResponse([{"name": name, "version": "1", "state": "READY"} for name in self._names])

    async def load(self, request: Request) -> Response:
        """Opens a model's file again."""
        _, engine = self._find(request.path_params["model"])
        await asyncio.to_thread(engine.load)
        return JSONResponse({})

    async def infer(self, request: Request) -> Response:
        """Tensors -> tensors. Reading and writing them is done beside the event loop: it can take a while."""
        name, engine = self._find(request.path_params["model"])
        body = await read_body(request, self._limits)
        call = await asyncio.to_thread(parse_call, body, request.headers.get(HEADER))
        outputs = await self._compute(request, engine, call)
        content, length = await asyncio.to_thread(write_answer, call, name, outputs)
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={HEADER: str(length)})

    async def _compute(self, request: Request, engine: Engine, call: Call) -> dict[str, NDArray[Any]]:
        """The outputs by name. Raises: InputError: the input is not one of the model's."""
        (input_name, given), *more = call.inputs.items()
        deadline = read_deadline(request, self._limits)
        if more or input_name not in ("images", "files"):
            raise InputError(f"inputs: expected images or files, got {', '.join(call.inputs)[:100]}")
        if isinstance(given, list) != (input_name == "files"):
            raise InputError("inputs: expected images as UINT8, or files as BYTES")
        if isinstance(given, list):
            if not 0 < len(given) <= MAX_IMAGES:
                raise InputError(f"inputs: files: expected 1 to {MAX_IMAGES}, got {len(given)}")
            jobs = [Job(content, f"files {number}", deadline) for number, content in enumerate(given)]
            answers: list[Answer] = _without_errors(await answers_of(request, engine, jobs))
            return _as_tensors([answer.detections for answer in answers])
        height, width = engine.predictor.preprocess.size_hw
        fits = given.dtype == np.uint8 and given.ndim == 4 and given.shape[1:] == (height, width, 3)
        if not fits or not 0 < len(given) <= MAX_IMAGES:
            raise InputError(
                f"inputs: images: expected UINT8 [1 to {MAX_IMAGES}, {height}, {width}, 3], got {given.dtype} "
                f"{list(given.shape)}"
            )
        job = Job(np.array(given), "images", deadline)
        (outputs,) = _without_errors(await answers_of(request, engine, [job]))
        return name_outputs(outputs)


def _without_errors(answers: list[Any]) -> list[Any]:
    """Raises: the first error among them."""
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


def _as_tensors(found: list[Detections]) -> dict[str, NDArray[Any]]:
    """Boxes in pixels of each file, of all files together, and which file each is of."""
    numbers = [np.full(len(each), number, np.int64) for number, each in enumerate(found)]
    return {
        "boxes": np.concatenate([each.boxes_xyxy for each in found]),
        "scores": np.concatenate([each.scores for each in found]),
        "labels": np.concatenate([each.labels for each in found]),
        "image": np.concatenate(numbers),
    }
