"""Exit codes and messages that all tools share."""

from __future__ import annotations

import pytest

from detector.cli import run
from detector.errors import InputError


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (None, 0, ""),
        (InputError("a: b;\n  c"), 2, "error: a: b; c\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (RuntimeError("boom"), 1, "error: internal error, please report it: RuntimeError: boom\n"),
        (
            ImportError("libGL.so.1: cannot open shared object file"),
            2,
            "error: OpenCV cannot load (libGL.so.1: cannot open shared object file); "
            "install it with: apt-get install libgl1 libglib2.0-0\n",
        ),
        (
            ModuleNotFoundError("No module named 'cv2'"),
            2,
            "error: a package is missing (No module named 'cv2'); run: pip install -r requirements.txt\n",
        ),
    ],
)
def test_every_exit_prints_at_most_one_line(
    raised: BaseException | None,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DETECTOR_DEBUG", raising=False)

    def main(_: list[str]) -> int:
        if raised is not None:
            raise raised
        return 0

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == code
    assert capsys.readouterr().err == message


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTOR_DEBUG", "1")

    def main(_: list[str]) -> int:
        raise InputError("x")

    with pytest.raises(SystemExit):
        run(main)
    assert "Traceback" in capsys.readouterr().err
