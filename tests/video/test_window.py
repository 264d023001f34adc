"""A real window on a virtual screen: the window build of OpenCV must win over the headless one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector.data.synthetic import write_video

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "640x480x24"], pass_fds=[write], stderr=subprocess.DEVNULL
    )
    os.close(write)
    number = os.read(read, 16).decode().strip()
    yield f":{number}"
    server.terminate()
    server.wait()
    os.close(read)


def test_a_window_opens(display: str) -> None:
    code = (
        "import numpy as np\n"
        "from detector.video.sink import WINDOW_TITLE, WindowSink\n"
        "import cv2\n"
        "sink = WindowSink()\n"
        "for _ in range(5): sink.show(0, np.full((60, 80, 3), 200, np.uint8))\n"
        "assert not sink.quit\n"
        "assert cv2.getWindowProperty(WINDOW_TITLE, cv2.WND_PROP_VISIBLE) >= 1\n"
        "sink.close()\n"
        "print('shown')\n"
    )
    environment = {**os.environ, "DISPLAY": display}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.strip().endswith("shown"), result.stderr


def test_the_demo_shows_a_video(display: str, trained_run: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", (64, 64), seed=0, num_frames=3)
    command = [
        sys.executable,
        str(ROOT / "tools/demo.py"),
        str(trained_run),
        "--video",
        str(tmp_path / "a.mp4"),
        "--show",
    ]
    environment = {**os.environ, "DISPLAY": display}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "3 frames" in result.stderr
