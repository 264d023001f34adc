"""Serves one or more detectors over HTTP: images in, boxes out; also by the Open Inference Protocol (v2).

Examples:
    python tools/serve.py mine.onnx
    python tools/serve.py mine.xml other=weights/other --address 0.0.0.0:8000
    curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/detect
    curl --data-binary @photo.jpg "http://127.0.0.1:8000/v1/detect?format=jpeg" > annotated.jpg
"""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from detector.cli import Parser, add_device_argument, print_json, print_note, run
from detector.errors import InputError
from detector.extras import require_all
from detector.postprocess import Thresholds

if TYPE_CHECKING:
    from detector.inference.predictor import Predictor

MODEL_SUFFIXES = (".cfg", ".onnx", ".safetensors", ".weights", ".xml", ".yaml")
CONNECTIONS = 64
"""That may be open beside those that wait in the line."""


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    require_all(("starlette", "uvicorn", "prometheus_client", "python_multipart"), "serve.py")

    import uvicorn

    from detector.serve.app import Service
    from detector.serve.engine import Engine
    from detector.serve.requests import Limits
    from detector.web import Guard, is_loopback, listen, parse_address, token_for, with_token

    host, port = parse_address(options.address, "--address")
    engines = {}
    for text in options.models:
        name, model = split_name(text)
        if name in engines:
            raise InputError(f"{text}: there is a model {name} already; give it a name: NAME={model}")
        engines[name] = Engine(
            partial(open_predictor, model, options),
            workers=options.workers,
            max_waiting=options.max_waiting,
            max_batch=options.max_batch,
        )
        print_note(f"{name}: {model}, {engines[name].predictor.runtime.name}")
    service = Service(engines, Limits(max_bytes=round(options.max_mb * 2**20), deadline_seconds=options.deadline))
    server, url = listen(host, port, "--address")
    token = token_for(host)
    probes = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
    app = Guard(service.app, token, loopback=is_loopback(host), open_paths=probes)
    print_note(f"serving at {with_token(url, token)}")
    if options.json:
        print_json({"url": with_token(url, token), "models": list(engines)})
        sys.stdout.flush()
    config = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        access_log=False,
        timeout_graceful_shutdown=30,
        limit_concurrency=CONNECTIONS + 2 * options.max_waiting,
    )
    with suppress(KeyboardInterrupt):  # the server has ended by then, after the last answer
        uvicorn.Server(config).run(sockets=[server])
    service.close()
    return 0


def parse(arguments: list[str]) -> Namespace:
    """The options. Raises: InputError."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "models", nargs="+", metavar="[NAME=]MODEL", help="exported files, weights, runs or public models"
    )
    parser.add_argument("--address", default="127.0.0.1:8000", metavar="HOST:PORT", help="(%(default)s)")
    parser.add_argument("--backend", help="see tools/demo.py --help")
    parser.add_argument(
        "--score-threshold", type=float, default=Thresholds.score_threshold, help="keep higher scores (%(default)s)"
    )
    parser.add_argument("--multi-label", action="store_true", help="an object may have boxes of several classes")
    parser.add_argument("--workers", type=int, default=2, help="threads of each model (%(default)s)")
    parser.add_argument(
        "--max-waiting", type=int, default=64, help="images in the line; more are refused (%(default)s)"
    )
    parser.add_argument("--max-batch", type=int, default=1, help="images computed together, if they wait (%(default)s)")
    parser.add_argument("--max-mb", type=float, default=32, help="of a request (%(default)g)")
    parser.add_argument("--deadline", type=float, default=30, help="seconds until a request is given up (%(default)g)")
    parser.add_argument(
        "--json", action="store_true", help="the address and the models as JSON on stdout, once it serves"
    )
    add_device_argument(parser)
    options = parser.parse_args(arguments)
    for name in ("workers", "max_waiting", "max_batch", "max_mb", "deadline"):
        if getattr(options, name) <= 0:
            raise InputError(f"--{name.replace('_', '-')}: expected more than 0")
    return options


def split_name(text: str) -> tuple[str, str]:
    """A model's name and what it is: "NAME=MODEL", or a model whose file or folder gives the name."""
    name, equals, model = text.partition("=")
    if equals and "/" not in name:
        return name, model
    path = Path(text)
    return path.stem if path.suffix in MODEL_SUFFIXES else path.name, text


def open_predictor(model: str, options: Namespace) -> Predictor:
    """Raises: InputError: it cannot be opened."""
    from detector.inference.find import find_model
    from detector.inference.predictor import Predictor

    thresholds = Thresholds(options.score_threshold, multi_label=options.multi_label)
    return Predictor.from_loaded(
        find_model(model, None, None), thresholds, backend=options.backend, device=options.device
    )


if __name__ == "__main__":
    run(main)
