"""Training on a GPU: the same bytes after a kill, several processes, waits, launches and speed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.benchmark.training import random_batch, training_step
from detector.checkpoint import load_checkpoint
from detector.config import DetectConfig, load_config, to_yaml
from detector.models.precision import autocast, to_network_input
from detector.train.detection import loss_terms
from detector.train.loop import train
from detector.train.parts import bytes_per_image
from detector.train.state import fresh_state

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
GPU = torch.device("cuda", 0)
Make = Callable[..., DetectConfig]
EXACT = ["train.deterministic=true", "train.max_steps=60", "train.save_every=20", "evaluate.every=0"]
SPEED = ["preprocess.size_hw=[416,416]", "train.batch_size=64", "train.subdivisions=1", "augment.multi_scale=null"]
WAITS, LAUNCHES = 1, 1500
"""Limits for a step, the same as without a GPU."""


def digest(run_dir: Path) -> str:
    """Hash of all tensors of a run's state; the rest of the file names its folder."""
    tensors = load_checkpoint(run_dir / "last.safetensors").tensors
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].numpy().tobytes())
    return found.hexdigest()


def command(config: DetectConfig, folder: Path, *launcher: str) -> list[str]:
    path = folder / f"{Path(str(config.run_dir)).name}.yaml"
    path.write_text(to_yaml(config))
    return [*(launcher or (sys.executable,)), str(ROOT / "tools/train.py"), str(path), "--resume"]


def torchrun(count: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count))


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def undisturbed(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bytes of a deterministic run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    overrides = [f"data.root={tiny_data}", *EXACT, f"run_dir={folder / 'run'}"]
    done = run(command(load_config(ROOT / "configs/tiny.yaml", overrides), folder), folder)
    assert done.returncode == 0, done.stderr[-1500:]
    return digest(folder / "run")


def test_killed_and_resumed(tiny: Make, tmp_path: Path, undisturbed: str, figures: dict[str, Any]) -> None:
    config = tiny(EXACT, run="run")
    process = subprocess.Popen(
        command(config, tmp_path), cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True
    )
    saved = Path(str(config.run_dir)) / "last.safetensors"
    while process.poll() is None and not saved.exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    done = run(command(config, tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr[-1500:]
    figures["deterministic_resume_is_exact"] = digest(saved.parent) == undisturbed
    assert figures["deterministic_resume_is_exact"]


def test_without_the_flag(tiny: Make, figures: dict[str, Any]) -> None:
    """Reported only: the README claims what this finds."""
    settings = [*EXACT, "train.deterministic=false"]
    digests = set()
    for name in ("a", "b", "c"):
        train(tiny(settings, run=name))
        digests.add(digest(Path(str(tiny(settings, run=name).run_dir))))
    figures["equal_without_deterministic"] = len(digests) == 1


def test_waits_and_launches(figures: dict[str, Any]) -> None:
    config = load_config(ROOT / "configs/csppelee_efm.yaml", [*SPEED, "train.precision=bf16", "run_dir=unused"])
    step = training_step(config, GPU)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in caught if "called a synchronizing" in str(each.message)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    kernels = sum(each.count for each in profile.key_averages() if each.device_type == torch.autograd.DeviceType.CUDA)
    figures["waits_per_step"], figures["kernels_per_step"] = len(waits), kernels
    # The batch is in pageable memory here, not in pinned memory as from the loader: one wait for each of its tensors.
    assert len(waits) <= WAITS + 3, waits


def test_one_process_of_nccl(tiny: Make, tmp_path: Path, undisturbed: str) -> None:
    config = tiny(EXACT, run="nccl")
    done = run(command(config, tmp_path, *torchrun(1)), tmp_path)
    assert done.returncode == 0, done.stderr[-1500:]
    assert digest(Path(str(config.run_dir))) == undisturbed


def test_two_processes_of_nccl(tiny: Make, tmp_path: Path, figures: dict[str, Any]) -> None:
    if torch.cuda.device_count() < 2:
        figures["two_processes"] = None
        pytest.skip("one GPU only")
    first = []
    for count, extra in ((1, []), (2, ["train.sync_batchnorm=true"])):
        short = [*EXACT, *extra, "train.max_steps=1", "train.log_every=1", "train.precision=fp32"]
        config = tiny(short, run=f"ranks_{count}")
        done = run(command(config, tmp_path, *torchrun(count)), tmp_path)
        assert done.returncode == 0, done.stderr[-1500:]
        first.append((Path(str(config.run_dir)) / "metrics.jsonl").read_text().splitlines()[0])
    losses = [float(line.split('"loss/total": ')[1].split(",")[0]) for line in first]
    figures["two_processes"] = abs(losses[1] / losses[0] - 1)
    assert figures["two_processes"] < 1e-4


def test_more_processes_than_gpus(tiny: Make, tmp_path: Path) -> None:
    gpus = torch.cuda.device_count()
    done = run(command(tiny(EXACT, run="many"), tmp_path, *torchrun(gpus + 1)), tmp_path)
    assert done.returncode != 0
    assert f"{gpus + 1} processes for {gpus} GPU" in done.stderr


def test_speed_of_the_step(figures: dict[str, Any]) -> None:
    config = load_config(ROOT / "configs/csppelee_efm.yaml", [*SPEED, "train.precision=bf16", "run_dir=unused"])
    torch.cuda.reset_peak_memory_stats(GPU)
    step = training_step(config, GPU)
    figures["step_images_per_second"] = round(64 / seconds_per_call(step, 20))
    figures["step_peak_gib"] = round(torch.cuda.max_memory_allocated(GPU) / 2**30, 2)
    estimate = 64 * bytes_per_image(config, torch.bfloat16) / 2**30
    figures["step_estimated_gib"] = round(estimate, 2)
    assert 0.7 < estimate / figures["step_peak_gib"] < 2, "train.subdivisions=auto relies on it"
    state, batch = fresh_state(config, GPU), random_batch(config)
    with autocast(GPU, "bf16"), torch.no_grad():
        raw_maps = state.network(to_network_input(batch.images, GPU))
    raw_maps = [each.detach().requires_grad_() for each in raw_maps]
    loss_of = loss_terms(config, state.network, GPU)
    in_loss = seconds_per_call(lambda: loss_of(raw_maps, batch).sum().backward(), 20)
    figures["step_share_of_loss"] = round(in_loss * figures["step_images_per_second"] / 64, 3)


def seconds_per_call(call: Callable[[], Any], count: int) -> float:
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_speed_with_the_loader(tmp_path: Path, figures: dict[str, Any]) -> None:
    workers = max(len(os.sched_getaffinity(0)) - 2, 1)
    synthetic = "data.synthetic={num_train: 512, num_val: 8, image_hw: [480, 640]}"
    settings = [*SPEED, "train.precision=auto", "train.max_steps=60", f"train.num_workers={workers}"]
    config = load_config(
        ROOT / "configs/quickstart.yaml",
        [*settings, synthetic, f"data.root={tmp_path / 'drawn'}", "evaluate.every=0", f"run_dir={tmp_path / 'run'}"],
    )
    found = train(config)
    figures["loader_workers"] = workers
    figures["loader_images_per_second"] = round(found["images_per_second"])
    figures["loader_share_of_steps_that_waited"] = round(found["share_of_steps_that_waited"], 3)
    assert found["images_per_second"] > 0
