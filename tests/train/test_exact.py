"""The same bytes: whatever kills a run, however many processes read the images, and on a full disk."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from detector.checkpoint import load_checkpoint
from detector.config import DetectConfig, to_yaml
from detector.train.loop import train

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., DetectConfig]
FILES = ("last.safetensors", "best.safetensors", "metrics.jsonl")
LONG = ["train.max_steps=24", "train.save_every=5", "train.log_every=4", "evaluate.every=7"]
SOAK_KILLS = 50


def digests(run_dir: Path) -> dict[str, str]:
    return {name: hashlib.sha256((run_dir / name).read_bytes()).hexdigest() for name in FILES}


def start(config: DetectConfig, folder: Path, **options: object) -> subprocess.Popen[bytes]:
    path = folder / "config.yaml"
    path.write_text(to_yaml(config))
    command = [sys.executable, str(ROOT / "tools/train.py"), str(path), "--resume"]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=folder,
        start_new_session=True,
        **options,  # type: ignore[call-overload]
    )


def kill_at(moment: str, process: subprocess.Popen[bytes], run_dir: Path, rng: random.Random) -> bool:
    """Kills a training run and all its workers at `moment`; returns False if the run ended before."""
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    output, training_since, delay = b"", None, rng.uniform(0, 4)
    while process.poll() is None:
        output += process.stderr.read() or b""
        if training_since is None and b"img/s" in output:
            training_since, output = time.monotonic(), b""
        if training_since is not None:
            if moment == "time" and time.monotonic() - training_since > delay:
                break
            if moment == "writing" and list(run_dir.glob(".*.safetensors.*")):
                break
            if moment == "evaluating" and b"evaluate:" in output:
                time.sleep(rng.uniform(0, 0.1))
                break
        time.sleep(0.001)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    return killed


def survive(make: Make, folder: Path, kills: int, seed: int) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Trains once undisturbed and once with repeated kills; returns both runs' digests and the moments."""
    config = make(LONG, run="run")
    run_dir = Path(str(config.run_dir))
    undisturbed = start(config, folder)
    _, errors = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, errors[-1000:]
    expected = digests(run_dir)
    run_dir.rename(folder / "undisturbed")

    rng, moments = random.Random(seed), []
    while len(moments) < kills:
        moment = ("time", "writing", "evaluating")[len(moments) % 3]
        process = start(config, folder)
        if kill_at(moment, process, run_dir, rng):
            moments.append(moment)
        else:  # already finished: start again from scratch
            assert process.returncode == 0
            assert digests(run_dir) == expected, moments
            run_dir.rename(folder / f"survived_{len(moments)}")
    last = start(config, folder)
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors[-1000:]
    assert not list(run_dir.glob(".*")), "a killed process left a partial file behind"
    return expected, digests(run_dir), moments


def test_killed_at_random_moments(tiny: Make, tmp_path: Path) -> None:
    expected, found, moments = survive(tiny, tmp_path, kills=3, seed=int.from_bytes(os.urandom(4), "big"))
    assert found == expected
    assert set(moments) == {"time", "writing", "evaluating"}


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_soak(tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    expected, found, moments = survive(tiny, tmp_path, kills=SOAK_KILLS, seed=seed)
    assert found == expected
    with capsys.disabled():
        counts = {moment: moments.count(moment) for moment in sorted(set(moments))}
        print(f"\nkilled {len(moments)} times {counts}, seed {seed}: the same bytes")  # noqa: T201


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
def test_loader_workers_change_no_byte(tiny: Make, tmp_path: Path) -> None:
    short = ["train.max_steps=4", "train.save_every=4", "train.log_every=2", "evaluate.every=4"]
    found = []
    for workers in (0, 1, 2, 4):
        # The weights file records its config, which differs: compare only the tensors and the metrics.
        config = tiny([*short, f"train.num_workers={workers}"], run=f"workers_{workers}")
        train(config)
        run_dir = Path(str(config.run_dir))
        tensors = load_checkpoint(run_dir / "last.safetensors").tensors
        content = b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))
        found.append((hashlib.sha256(content).hexdigest(), (run_dir / "metrics.jsonl").read_text()))
    assert len(set(found)) == 1


def test_a_full_disk_leaves_the_previous_checkpoint(tiny: Make, tmp_path: Path) -> None:
    """Files above a size limit cannot be written; only the kernel's message differs from that of a full disk."""
    constant = ["train.policy.name=steps", "evaluate.every=0"]
    before = tiny(["train.max_steps=2", *constant], run="run")
    train(before)
    run_dir = Path(str(before.run_dir))
    last = run_dir / "last.safetensors"
    content = last.read_bytes()
    limit = len(content) // 2

    longer = tiny(["train.max_steps=4", *constant], run="run")
    process = start(
        longer, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    )
    _, errors = process.communicate(timeout=120)
    message = errors.decode().strip().splitlines()[-1]
    assert process.returncode == 2
    assert "safetensors: cannot be written: File too large; the previous file is intact" in message
    assert last.read_bytes() == content
    assert not list(run_dir.glob(".*"))
    train(longer, resume=True)
    assert load_checkpoint(last).info["step"] == 4
