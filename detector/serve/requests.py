"""What is read from a request, within limits, and how an answer is waited for."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from detector.serve.engine import Engine, Job

MAX_IMAGES = 16
"""In one request."""


class GoneError(Exception):
    """The client has closed its side."""


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


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body. Raises: HTTPException: it is too long, or comes too slowly."""
    chunks, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.max_bytes:
                    raise HTTPException(413, f"at most {limits.max_bytes:,} bytes are allowed")
                chunks.append(chunk)
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not arrive in {limits.body_seconds:g} s") from error
    return b"".join(chunks)


def is_form(request: Request) -> bool:
    """Whether it holds a form, as a browser sends it."""
    return request.headers.get("content-type", "").startswith("multipart/")


async def read_images(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """Names and contents of the images in a request: its body, or the files of a form. Raises: HTTPException."""
    body = await read_body(request, limits)
    if not is_form(request):
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


def read_deadline(request: Request, limits: Limits) -> float:
    """From the header X-Timeout-Ms, or the default. Raises: HTTPException."""
    text = request.headers.get("x-timeout-ms")
    if text is None:
        return time.monotonic() + limits.deadline_seconds
    if re.fullmatch(r"[0-9]{1,8}", text) is None:
        raise HTTPException(400, f"X-Timeout-Ms: expected milliseconds, got {text[:20]!r}")
    return time.monotonic() + int(text) / 1000


def read_score(request: Request) -> float:
    """The query's score_threshold, or 0. Raises: HTTPException."""
    text = request.query_params.get("score_threshold", "0")
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise HTTPException(400, f"score_threshold: expected 0 to 1, got {text[:20]!r}")
    return score


async def answers_of(request: Request, engine: Engine, jobs: list[Job]) -> list[Any]:
    """Waits for the answers, an error among them as such.

    Raises:
        FullError, InputError: the line cannot take them.
        GoneError: the client has gone; what was not begun is not computed.
    """
    engine.submit(*jobs)
    waiting = [asyncio.wrap_future(job.answer) for job in jobs]
    answers: asyncio.Future[list[Any]] = asyncio.gather(*waiting, return_exceptions=True)
    gone: asyncio.Future[None] = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait((answers, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise GoneError
        return list(answers.result())
    finally:
        gone.cancel()
        for job in jobs:
            job.answer.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
