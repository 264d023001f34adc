"""Temporary files of a training are in one folder, which goes even when the process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from detector.train.scratch import OLD_SECONDS, scratch_folder

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


def test_folders_of_other_programs_stay(temp: Path) -> None:
    old = time.time() - 10 * OLD_SECONDS
    names = ["detector-main", "detector-train-12-abc", "detector-train-set"]
    for name in names:
        (temp / name).mkdir()
        (temp / name / "work.txt").write_text("a day's work")
        os.utime(temp / name, (old, old))
    unfinished = temp / "detector-train-13-abc"  # killed before it had its lock
    unfinished.mkdir()
    os.utime(unfinished, (old, old))
    with scratch_folder():
        assert sorted(path.name for path in temp.iterdir() if path.name in names) == names
        assert not unfinished.exists()
