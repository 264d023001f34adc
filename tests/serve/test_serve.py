"""The service: the same boxes as in Python, refusals in time, hostile requests, independent clients."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import uvicorn

from detector import Predictor
from detector.errors import InputError
from detector.inference.folder import to_rows
from detector.serve.app import Service
from detector.serve.engine import Engine, FullError, Job, TooLateError, name_outputs
from detector.serve.requests import Limits
from detector.serve.tensors import HEADER, parse_call
from detector.structures import Image
from detector.web import listen

ROOT = Path(__file__).resolve().parents[2]


class Server:
    """A service in a thread."""

    def __init__(self, engines: dict[str, Engine], limits: Limits | None = None) -> None:
        self.service = Service(engines, limits or Limits())
        server, self.url = listen("127.0.0.1", 0, "--address")
        self.host = self.url.removeprefix("http://").rstrip("/")
        self._server = uvicorn.Server(uvicorn.Config(self.service.app, log_level="warning", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [server]})
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.service.close()

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer."""
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read(), dict(response.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), dict(error.headers)


@pytest.fixture(scope="module")
def predictor(random_weights: Path) -> Predictor:
    return Predictor(random_weights, score_threshold=0.3)


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[Server]:
    limits = Limits(max_bytes=2**20, body_seconds=0.5)
    server = Server({"tiny": Engine(lambda: predictor, max_pixels=2**20)}, limits)
    yield server
    server.close()


@pytest.fixture(scope="module")
def photo() -> bytes:
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    return cv2.imencode(".png", cv2.GaussianBlur(image, (9, 9), 0))[1].tobytes()


def decoded(content: bytes) -> Image:
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    return np.asarray(bgr[..., ::-1], np.uint8)


def test_the_boxes_are_those_of_python(server: Server, predictor: Predictor, photo: bytes) -> None:
    found = predictor.predict(decoded(photo))
    assert len(found) > 3
    status, body, _ = server.ask("v1/detect", photo)
    answer = json.loads(body)
    assert (status, answer["model"], answer["height"], answer["width"]) == (200, "tiny", 120, 160)
    assert answer["detections"] == to_rows(found, predictor.class_names), "to the last digit"
    _, body, _ = server.ask("v1/detect?score_threshold=0.5&model=tiny", photo)
    assert json.loads(body)["detections"] == to_rows(found.above(0.5), predictor.class_names)


def test_an_annotated_image(server: Server, photo: bytes) -> None:
    status, body, headers = server.ask("v1/detect?format=jpeg", photo)
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    assert decoded(body).shape == (120, 160, 3)


def form(files: list[tuple[str, bytes]]) -> tuple[bytes, str]:
    """A form as a browser sends it."""
    body = b"".join(
        f'--XX\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files
    )
    return body + b"--XX--\r\n", "multipart/form-data; boundary=XX"


def test_several_images_in_a_form(server: Server, predictor: Predictor, photo: bytes) -> None:
    """A bad one is an error of its own."""
    body, kind = form([("a.png", photo), ("b.png", b"no image"), ("c.png", photo)])
    status, text, _ = server.ask("v1/detect", body, **{"Content-Type": kind})
    first, second, third = json.loads(text)["results"]
    assert status == 200
    assert (
        first["detections"] == third["detections"] == to_rows(predictor.predict(decoded(photo)), predictor.class_names)
    )
    assert second == {"name": "b.png", "error": "b.png: is not a readable image: unknown format"}


def bomb() -> bytes:
    """A PNG of a few bytes that claims 30,000 x 30,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        whole = name + content
        return len(content).to_bytes(4, "big") + whole + zlib.crc32(whole).to_bytes(4, "big")

    size = (30_000).to_bytes(4, "big") * 2
    parts = (
        chunk(b"IHDR", size + b"\x08\x02\x00\x00\x00")
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "message"),
    [
        ("v1/detect", b"", {}, 400, "is empty"),
        ("v1/detect", b"no image", {}, 400, "is not a readable image"),
        ("v1/detect", bomb(), {}, 400, "pixels"),
        ("v1/detect", bytes(2**20 + 1), {}, 413, "at most 1,048,576 bytes"),
        ("v1/detect?model=other", b"x", {}, 404, "no model other; there are tiny"),
        ("v1/detect?score_threshold=2", b"x", {}, 400, "score_threshold: expected 0 to 1"),
        ("v1/detect", b"x", {"X-Timeout-Ms": "soon"}, 400, "X-Timeout-Ms: expected milliseconds"),
        ("v1/detect", b"x", {"Content-Type": "multipart/form-data"}, 400, "the form cannot be read"),
        ("v1/detect", b"--XX--\r\n", {"Content-Type": "multipart/form-data; boundary=XX"}, 400, "has no file in it"),
        ("v1/detect", b"x", {"X-Timeout-Ms": "9" * 20}, 400, "X-Timeout-Ms: expected milliseconds"),
        ("v2/models/tiny/infer", b"{", {}, 400, "not a request of the protocol"),
        (
            "v2/models/tiny/infer",
            b'{"inputs": [{"name": "images", "datatype": "UINT8", "shape": [Infinity]}]}',
            {},
            400,
            "expected a shape",
        ),
        ("v2/models/tiny/infer", b"{}", {HEADER: "9" * 5000}, 400, "expected a length within the body"),
        ("v2/models/other/infer", b"{}", {}, 404, "no model other"),
        ("v2/repository/models/other/load", b"", {}, 404, "no model other"),
    ],
)
def test_bad_requests(
    server: Server, path: str, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    given, text, _ = server.ask(path, body, **headers)
    assert given == status
    assert message in json.loads(text)["error"]


def test_a_body_that_comes_too_slowly(server: Server) -> None:
    host, port = server.host.split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"POST /v1/detect HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 100\r\n\r\nabc".encode())
        begun = time.monotonic()
        assert client.recv(100).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begun < 3


def test_a_deadline_that_has_passed(server: Server, photo: bytes) -> None:
    status, text, _ = server.ask("v1/detect", photo, **{"X-Timeout-Ms": "0"})
    assert (status, json.loads(text)["error"]) == (504, "the deadline passed before the request was computed")


class Slow:
    """Stands for a predictor: each image takes a while."""

    def __init__(self, predictor: Predictor, seconds: float) -> None:
        self.class_names, self.preprocess = predictor.class_names, predictor.preprocess
        self.runtime, self.thresholds = predictor.runtime, predictor.thresholds
        self.predict = predictor.predict
        self.images = 0
        self._predictor, self._seconds = predictor, seconds

    def predict_batch(self, images: list[Image]) -> Any:
        self.images += len(images)
        time.sleep(self._seconds * len(images))
        return self._predictor.predict_batch(images)


@pytest.fixture
def busy(predictor: Predictor) -> Iterator[tuple[Server, Slow]]:
    slow = Slow(predictor, 0.2)
    server = Server({"tiny": Engine(lambda: slow, workers=1, max_waiting=3)})  # type: ignore[arg-type, return-value]
    yield server, slow
    server.close()


def test_a_full_line_is_refused_at_once(busy: tuple[Server, Slow], photo: bytes) -> None:
    server, _ = busy

    def ask(_: int) -> tuple[int, float, dict[str, str]]:
        begun = time.perf_counter()
        status, _, headers = server.ask("v1/detect", photo)
        return status, time.perf_counter() - begun, headers

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 3
    slowest = max(seconds for status, seconds, _ in answers if status == 200)
    for status, seconds, headers in answers:
        if status == 503:
            assert seconds < slowest, "it did not wait for its turn"
            assert int(headers["retry-after"]) >= 1
    assert "detector_rejected_total" in server.ask("metrics")[1].decode()


def test_who_has_gone_is_not_computed(busy: tuple[Server, Slow], photo: bytes) -> None:
    server, slow = busy
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.ask, "v1/detect", photo)
        time.sleep(0.05)
        host, port = server.host.split(":")
        for _ in range(2):
            client = http.client.HTTPConnection(host, int(port))
            client.request("POST", "/v1/detect", photo)
            time.sleep(0.02)
            client.close()
        assert first.result()[0] == 200
    time.sleep(0.3)
    assert slow.images < 3
    assert server.ask("v1/detect", photo)[0] == 200


def test_what_waits_becomes_a_batch(predictor: Predictor, photo: bytes) -> None:
    slow = Slow(predictor, 0.05)
    engine = Engine(lambda: slow, workers=1, max_batch=4)  # type: ignore[arg-type, return-value]
    jobs = [Job(photo) for _ in range(9)]
    engine.submit(*jobs)
    for job in jobs:
        found = job.answer.result(10).detections
        expected = predictor.predict(decoded(photo)).boxes_xyxy
        np.testing.assert_allclose(found.boxes_xyxy, expected, atol=0.01)  # another batch rounds otherwise
    assert max(engine.batches) == 4
    engine.close()
    with pytest.raises(FullError):
        engine.submit(Job(photo))


def test_an_engine_lets_go_of_what_is_late(predictor: Predictor, photo: bytes) -> None:
    engine = Engine(lambda: predictor)
    late, *gone = (Job(photo, deadline=time.monotonic() - 1) for _ in range(3))
    for job in gone:
        job.answer.cancel()
    engine.submit(*gone, late)
    with pytest.raises(TooLateError):
        late.answer.result(5)
    assert engine.abandoned == 3
    good = Job(photo)
    engine.submit(good)
    assert len(good.answer.result(5).detections) > 0, "the threads live on"
    engine.close()


def test_a_model_is_loaded_again_only_when_it_works(random_weights: Path, tmp_path: Path, photo: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(random_weights.read_bytes())
    server = Server({"tiny": Engine(lambda: Predictor(path, score_threshold=0.3))})
    before = server.ask("v1/detect", photo)[1]
    path.write_bytes(b"damaged")
    status, text, _ = server.ask("v2/repository/models/tiny/load", b"")
    assert (status, "model.safetensors" in json.loads(text)["error"]) == (400, True)
    assert server.ask("v1/detect", photo)[1] == before
    path.write_bytes(random_weights.read_bytes())
    loaded_at = json.loads(server.ask("v1/models")[1])["tiny"]["loaded_at"]
    assert server.ask("v2/repository/models/tiny/load", b"")[0] == 200
    assert json.loads(server.ask("v1/models")[1])["tiny"]["loaded_at"] > loaded_at
    assert server.ask("v1/detect", photo)[1] == before
    server.close()


def test_an_independent_client(server: Server, predictor: Predictor, photo: bytes) -> None:
    """tritonclient: raw maps bit for bit, and the boxes of files; as bytes and as JSON."""
    triton = pytest.importorskip("tritonclient.http")
    with triton.InferenceServerClient(server.host) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        metadata = client.get_model_metadata("tiny")
        assert [entry["name"] for entry in metadata["inputs"]] == ["images", "files"]
        pixels, _ = predictor.fit([decoded(photo)])
        expected = name_outputs(list(predictor.runtime.run(pixels)))
        assert [entry["name"] for entry in metadata["outputs"]] == list(expected)
        for binary in (True, False):
            given = triton.InferInput("images", list(pixels.shape), "UINT8")
            given.set_data_from_numpy(pixels, binary_data=binary)
            wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in expected]
            answer = client.infer("tiny", [given], outputs=wanted, request_id="7")
            assert answer.get_response()["id"] == "7"
            for name, array in expected.items():
                np.testing.assert_array_equal(answer.as_numpy(name), array)
        files = triton.InferInput("files", [2], "BYTES")
        files.set_data_from_numpy(np.array([photo, photo], object))
        answer = client.infer("tiny", [files])
        found = predictor.predict(decoded(photo))
        np.testing.assert_array_equal(answer.as_numpy("boxes"), np.concatenate([found.boxes_xyxy] * 2))
        np.testing.assert_array_equal(answer.as_numpy("scores"), np.concatenate([found.scores] * 2))
        np.testing.assert_array_equal(answer.as_numpy("image"), np.repeat([0, 1], len(found)))
        with pytest.raises(triton.InferenceServerException, match="expected UINT8"):
            client.infer("tiny", [triton_input(triton, np.zeros((1, 8, 8, 3), np.uint8))])


def triton_input(triton: Any, array: np.ndarray) -> Any:
    given = triton.InferInput("images", list(array.shape), "UINT8")
    given.set_data_from_numpy(array)
    return given


def entry(**changes: Any) -> bytes:
    tensor = {"name": "images", "shape": [1], "datatype": "UINT8", "data": [1], **changes}
    return json.dumps({"inputs": [tensor]}).encode()


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"[]", None, "not a request"),
        (b'{"inputs": []}', None, "expected a list of tensors"),
        (entry(shape=[-1]), None, "expected a shape"),
        (entry(shape=[2]), None, "expected 2 numbers, got 1"),
        (entry(shape=[2**30] * 8), None, "numbers, got 1"),
        (entry(shape=[1] * 300_000), None, "expected a shape of at most 8 sides"),
        (entry(data=[1] * 2_000_000), None, "send tensors as binary data"),
        (entry(data=[300]), None, "some values are not of UINT8"),
        (entry(data=["a"]), None, "expected 1 numbers"),
        (entry(data=[[1], [2, 3]]), None, "not a request"),
        (entry(datatype="FP8"), None, "expected a datatype"),
        (entry(datatype="BYTES", data=["a", "b"]), None, "expected 1 elements, got 2"),
        (entry(parameters={"binary_data_size": 5}), None, "is not within the body"),
        (entry(parameters={"binary_data_size": -1}), None, "is not within the body"),
        (entry(), "9999", "expected a length within the body"),
        (entry(), "x", "expected a length within the body"),
        (b'{"a":' * 100_000, None, "not a request"),
    ],
)
def test_tensors_that_are_none(body: bytes, length: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_call(body, length)


def test_pages_and_descriptions(server: Server) -> None:
    assert server.ask("healthz")[0] == server.ask("readyz")[0] == 200
    assert b"<h1>detector</h1>" in server.ask("docs")[1]
    description = json.loads(server.ask("openapi.json")[1])
    for path in description["paths"]:
        status, _, _ = server.ask(path.lstrip("/").replace("{model}", "tiny"))
        assert status in (200, 405), path


def test_a_request_that_the_line_can_never_take(predictor: Predictor, photo: bytes) -> None:
    engine = Engine(lambda: predictor, max_waiting=2)
    with pytest.raises(InputError, match="3 images in one request; at most 2 are allowed"):
        engine.submit(*(Job(photo) for _ in range(3)))
    pixels = np.zeros((3, *predictor.preprocess.size_hw, 3), np.uint8)
    with pytest.raises(InputError, match="3 images"):
        engine.submit(Job(pixels))
    engine.close()


def test_hostile_requests_leave_nothing_behind(server: Server, photo: bytes) -> None:
    """Hundreds of requests, a part of them hostile: every good one is answered right, no 500, no thread more."""
    expected = server.ask("v1/detect", photo)[1]
    threads = threading.active_count()
    rng = np.random.default_rng(0)

    def send(number: int) -> None:
        kind = rng.integers(0, 20) if number % 4 == 0 else 99
        if kind < 5:
            status, _, _ = server.ask("v1/detect", photo[: int(rng.integers(0, len(photo)))])
            assert status == 400
        elif kind < 10:
            assert server.ask("v1/detect", bomb())[0] == 400
        elif kind < 15:
            host, port = server.host.split(":")
            with socket.create_connection((host, int(port))) as client:
                client.sendall(rng.bytes(200))
        else:
            status, body, _ = server.ask("v1/detect", photo)
            assert status in (200, 503)
            assert status == 503 or body == expected

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(send, range(400)))
    time.sleep(0.5)
    assert threading.active_count() <= threads + 1
    metrics = server.ask("metrics")[1].decode()
    assert 'status="400"' in metrics
    assert 'status="500"' not in metrics


@pytest.fixture
def started(random_weights: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Starts tools/serve.py; returns the process and its URL."""
    processes = []

    def start(*arguments: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, str(ROOT / "tools/serve.py"), f"tiny={random_weights}", *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
        processes.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("serving at "):
                return process, line.removeprefix("serving at ").strip()
        raise AssertionError("it did not start")

    yield start
    for process in processes:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models/mine.onnx", ("mine", "models/mine.onnx")),
        ("yolo-fastest-1.1", ("yolo-fastest-1.1", "yolo-fastest-1.1")),
        ("weights/run_a", ("run_a", "weights/run_a")),
        ("gate=models/mine.onnx", ("gate", "models/mine.onnx")),
        ("runs/lr=0.1/best.safetensors", ("best", "runs/lr=0.1/best.safetensors")),
    ],
)
def test_the_name_of_a_model(text: str, expected: tuple[str, str]) -> None:
    assert runpy.run_path(str(ROOT / "tools/serve.py"))["split_name"](text) == expected


def test_the_tool_serves_and_ends(started: Callable[..., tuple[subprocess.Popen[str], str]], photo: bytes) -> None:
    process, url = started("--address", "127.0.0.1:0")
    with urllib.request.urlopen(urllib.request.Request(f"{url}v1/detect", photo), timeout=20) as answer:
        assert json.load(answer)["model"] == "tiny"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_beyond_loopback_it_needs_the_token(started: Callable[..., tuple[subprocess.Popen[str], str]]) -> None:
    _, url = started("--address", "0.0.0.0:0", DETECTOR_TOKEN="sesame")
    assert url.endswith("?token=sesame")
    base = url.removesuffix("?token=sesame").replace("0.0.0.0", "127.0.0.1")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{base}v1/models", timeout=20)
    with urllib.request.urlopen(f"{base}healthz", timeout=20) as answer:
        assert answer.status == 200, "who watches whether it lives needs none"
    request = urllib.request.Request(f"{base}v1/models", headers={"Authorization": "Bearer sesame"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200
