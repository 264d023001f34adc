"""What all tools share: one-line errors, exit codes, JSON on stdout and everything else on stderr."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from detector.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others; its help keeps the layout of the examples."""

    def __init__(self, description: str | None = None, prog: str | None = None) -> None:
        super().__init__(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs a tool's main with the command line and exits: 0 success, 1 with gaps, 2 bad input, 130 interrupted.

    Errors are one line on stderr. With DETECTOR_DEBUG=1 in the environment a traceback is shown as well.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text
    previous = signal.signal(signal.SIGTERM, _stop)  # files are closed properly, as with Ctrl-C
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except InputError as error:
        code = _fail(str(error), 2, error)
    except KeyboardInterrupt as error:
        code = _fail("interrupted", 130, error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _fail(f"{where}{error.strerror or error}", 2, error)
    except ImportError as error:
        code = _fail(_explain_import(error), 2, error)
    except Exception as error:
        code = _fail(f"internal error, please report it: {type(error).__name__}: {error}", 1, error)
    finally:
        signal.signal(signal.SIGTERM, previous)
    sys.exit(code)


def announce_backend(name: str | None) -> None:
    """Explains the wait while the fastest backend is being found."""
    if name == "auto":
        print_note("backend auto: measuring the backends once on this machine (up to a minute); the result is stored")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a model, the same for all tools; `inference.find.find_model` resolves them."""
    parser.add_argument(
        "model",
        nargs="?",
        help="weights or exported file, Darknet cfg, run folder, or config (its run); default: the newest in weights/",
    )
    parser.add_argument("--weights", help="weights file, when MODEL is a cfg or config or is left out")
    parser.add_argument("--names", help="file of class names, for a Darknet cfg (default: a *.names beside it)")
    parser.add_argument(
        "--backend",
        help="torch, torch-bf16, onnxruntime, openvino, openvino-bf16 or opencv; auto = the fastest on this machine "
        "(default: torch for weights, the library of its format for an exported file)",
    )
    add_device_argument(parser)


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """`--device`, the same for all tools that run a detector; `runtime.device.find_device` resolves it."""
    help_text = "cpu, or for PyTorch cuda (the first GPU) or cuda:N (default: %(default)s)"
    parser.add_argument("--device", default="cpu", help=help_text)


def parse_size(sides: Sequence[int]) -> tuple[int, int]:
    """Height and width from `--size HEIGHT [WIDTH]`. Raises: InputError: other than one or two multiples of 32."""
    if not 1 <= len(sides) <= 2 or any(side < 32 or side % 32 for side in sides):
        raise InputError(f"--size: expected one or two multiples of 32, got {' '.join(map(str, sides))}")
    return sides[0], sides[-1]


def print_json(content: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(content, allow_nan=False))


def print_note(message: str) -> None:
    """A line for people, on stderr."""
    print(message, file=sys.stderr, flush=True)


def _stop(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str, code: int, error: BaseException) -> int:
    if os.environ.get("DETECTOR_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    print_note("error: " + " ".join(message.split()))
    return code


def _explain_import(error: ImportError) -> str:
    text = str(error)
    if "libGL" in text or "libgthread" in text:
        return f"OpenCV cannot load ({text}); install it with: apt-get install libgl1 libglib2.0-0"
    return f"a package is missing ({text}); run: pip install -r requirements.txt"
