"""The server: a page, pictures by WebSocket or MJPEG, results, health and metrics. Starlette and uvicorn, an extra."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from detector.video.web.hub import Hub
from detector.web import Guard, is_loopback, listen, token_for, with_token

PAGE = Path(__file__).with_name("page.html")
BOUNDARY = "frame"


class WebServer:
    """Serves a hub in a thread of its own, from its creation until `close`.

    Beyond loopback, requests need the token of the environment variable DETECTOR_TOKEN, or one that is made here.

    Attributes:
        url: the page, with the token if there is one.

    Raises:
        InputError: the address is not free.
    """

    def __init__(self, hub: Hub, host: str, port: int) -> None:
        self._socket, url = listen(host, port, "--web")
        token = token_for(host)
        self.url = with_token(url, token)
        app = Guard(Pages(hub).build(), token, loopback=is_loopback(host), open_paths=frozenset({"/healthz"}))
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", ws="websockets-sansio", timeout_graceful_shutdown=1, lifespan="off")
        )
        self._hub = hub
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        async def serve() -> None:
            self._hub.serve_in(asyncio.get_running_loop())
            await self._server.serve(sockets=[self._socket])

        asyncio.run(serve())

    def close(self) -> None:
        """Ends every connection and the thread."""
        self._server.should_exit = True
        self._thread.join(3)


class Pages:
    """The endpoints. Args: hub: what they show."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._registry = CollectorRegistry()
        self._registry.register(_Metrics(hub))

    def build(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/state", self.state),
                Route("/healthz", self.health),
                Route("/metrics", self.metrics),
                Route("/stream/{camera:int}.mjpg", self.mjpeg),
                Route("/events", self.events),
                WebSocketRoute("/ws/{camera:int}", self.pictures),
            ]
        )

    async def page(self, request: Request) -> Response:  # noqa: ARG002
        """For a browser."""
        return HTMLResponse(PAGE.read_text())

    async def state(self, request: Request) -> Response:  # noqa: ARG002
        """Everything that is measured and counted."""
        return JSONResponse(self._hub.state())

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """200 while any camera gives frames."""
        cameras = [
            {"source": camera.source.name, "state": camera.source.state, "fresh": self._hub.is_fresh(number)}
            for number, camera in enumerate(self._hub.cameras)
        ]
        good = any(camera["fresh"] for camera in cameras)
        return JSONResponse({"ok": good, "cameras": cameras}, 200 if good else 503)

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """For Prometheus."""
        return Response(generate_latest(self._registry), media_type="text/plain; version=0.0.4")

    async def mjpeg(self, request: Request) -> Response:
        """A camera's images, one after the other, for what has no WebSockets."""
        camera = request.path_params["camera"]
        if camera >= len(self._hub.cameras):
            return PlainTextResponse("no such camera\n", 404)

        async def parts() -> AsyncIterator[bytes]:
            async with self._hub.pictures(camera) as pictures:
                async for picture in pictures:
                    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture) - 8}\r\n\r\n"
                    yield head.encode() + picture[8:] + b"\r\n"

        return StreamingResponse(parts(), media_type=f"multipart/x-mixed-replace; boundary={BOUNDARY}")

    async def events(self, request: Request) -> Response:  # noqa: ARG002
        """Results and events as they come (server-sent events)."""

        async def lines() -> AsyncIterator[str]:
            async with self._hub.lines() as listener:
                while True:
                    for line in await listener.take():
                        yield f"data: {json.dumps(line, allow_nan=False)}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def pictures(self, websocket: WebSocket) -> None:
        """A camera's images, as fast as the viewer takes them."""
        camera = websocket.path_params["camera"]
        if camera >= len(self._hub.cameras):
            await websocket.close(1008, "no such camera")
            return
        await websocket.accept()
        gone = asyncio.ensure_future(_until_gone(websocket))
        try:
            async with self._hub.pictures(camera) as newest:
                sending = asyncio.ensure_future(_send_all(websocket, newest))
                await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
                sending.cancel()
        finally:
            gone.cancel()


async def _until_gone(websocket: WebSocket) -> None:
    """Returns when the viewer has closed its side."""
    try:
        while True:
            await websocket.receive()
    except (WebSocketDisconnect, RuntimeError):
        return


async def _send_all(websocket: WebSocket, newest: AsyncIterator[bytes]) -> None:
    try:
        async for picture in newest:
            await websocket.send_bytes(picture)  # waits for a slow viewer; the next picture is the newest then
    except (WebSocketDisconnect, RuntimeError, OSError):
        return


class _Metrics:
    """The ledgers in the words of Prometheus, read when they are asked for."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> list[Metric]:
        """All metrics now."""
        label = ["camera", "source"]
        frames = CounterMetricFamily("detector_frames", "frames that the detector saw", labels=label)
        dropped = CounterMetricFamily("detector_frames_dropped", "frames replaced by newer ones", labels=label)
        unsaved = CounterMetricFamily("detector_frames_unsaved", "frames detected, but not drawn", labels=label)
        found = CounterMetricFamily("detector_detections", "detections", labels=label)
        reconnects = CounterMetricFamily("detector_reconnects", "times a lost source came back", labels=label)
        rate = GaugeMetricFamily("detector_frames_per_second", "of the last frames", labels=label)
        up = GaugeMetricFamily("detector_source_up", "1 while frames arrive", labels=label)
        viewers = GaugeMetricFamily("detector_viewers", "browsers that watch", labels=label)
        parts = [*label, "stage", "quantile"]
        stages = GaugeMetricFamily("detector_stage_seconds", "of the last frames", labels=parts)
        counts = CounterMetricFamily("detector_count", "events at lines and zones", labels=[*label, "place", "what"])
        for number, row in enumerate(self._hub.state()):
            source = [str(number), row["source"]]
            for family, value in (
                (frames, row["frames"]),
                (dropped, row["dropped"]),
                (unsaved, row["unsaved"]),
                (found, row["detections"]),
                (reconnects, row["reconnects"]),
                (rate, row["frames_per_second"]),
                (up, float(row["fresh"] and row["state"] == "open")),
                (viewers, row["viewers"]),
            ):
                family.add_metric(source, value)
            for stage, times in {**row["stages_ms"], "capture_to_boxes": row["capture_to_boxes_ms"]}.items():
                for share, milliseconds in times.items():
                    stages.add_metric([*source, stage, f"0.{share[1:]}"], milliseconds / 1000)
            for place, events in row["counts"].items():
                for what, count in events.items():
                    counts.add_metric([*source, place, what], count)
        return [frames, dropped, unsaved, found, reconnects, rate, up, viewers, stages, counts]
