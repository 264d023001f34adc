"""Temporary files of a training are in one folder, which goes even when the process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from detector.train.scratch import scratch_folder

WAIT = "from detector.train.scratch import scratch_folder\nwith scratch_folder() as f: print(f, flush=True); input()"


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_is_left_by_a_killed_process_goes_and_what_is_in_use_stays(temp: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(temp)}
    killed, alive = (
        subprocess.Popen(
            [sys.executable, "-c", WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        for _ in range(2)
    )
    folders = []
    for process in (killed, alive):
        assert process.stdout is not None
        folders.append(Path(process.stdout.readline().strip()))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert folders[0].is_dir(), "a killed process cannot tidy up"
    with scratch_folder() as mine:
        assert not folders[0].exists()
        assert folders[1].is_dir()
        assert Path(tempfile.mkdtemp()).parent == mine
    assert not mine.exists()
    assert tempfile.gettempdir() == str(temp)
    alive.communicate("")
    assert list(temp.iterdir()) == []
