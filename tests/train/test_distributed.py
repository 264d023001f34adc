"""Two processes that train together: the same batches, the same result, and one that dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detector.checkpoint import load_checkpoint
from detector.config import DetectConfig, to_yaml
from detector.data.loader import training_batches
from detector.errors import InputError
from detector.evaluate.detection import evaluate, evaluation_thresholds
from detector.inference.predictor import Predictor
from detector.inference.weights import load_detector
from detector.train.detection import open_split
from detector.train.distributed import Ranks, SynchronizedBatchNorm, synchronize_batchnorm
from detector.train.loop import train

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., DetectConfig]
OPTIONS = ["train.precision=fp32", "train.max_steps=1", "train.subdivisions=2", "train.burn_in=0", "evaluate.every=0"]


def torchrun(config: DetectConfig, folder: Path, *options: str) -> list[str]:
    path = folder / "config.yaml"
    path.write_text(to_yaml(config))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    return [*launcher, str(ROOT / "tools/train.py"), str(path), "--json"]


@contextmanager
def launched(command: list[str], cwd: Path, **streams: int) -> Iterator[subprocess.Popen[str]]:
    """Starts a launcher; kills it and its ranks at the end."""
    launcher = subprocess.Popen(command, cwd=cwd, text=True, start_new_session=True, **streams)  # type: ignore[call-overload]
    try:
        yield launcher
    finally:
        for process in (launcher.pid, *descendants(launcher.pid)):  # each rank has its own session
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        launcher.communicate()


def descendants(process: int) -> list[int]:
    """All descendants that are session leaders, so that each can be killed with its process group."""
    with suppress(FileNotFoundError, ProcessLookupError):
        lists = [path.read_text().split() for path in Path(f"/proc/{process}/task").glob("*/children")]
        children = [int(child) for children in lists for child in children]
        found = [child for child in children if os.getpgid(child) == child]
        return found + [each for child in children for each in descendants(child)]
    return []


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_all_ranks_together_see_the_batches_of_one(tiny: Make, num_ranks: int) -> None:
    config = tiny(["train.num_workers=0", "train.subdivisions=2", "train.batch_size=24", "train.max_steps=2"])
    dataset = open_split(config, "train")
    alone = list(training_batches(dataset, config, start_step=0))
    shares = [
        list(training_batches(dataset, config, start_step=0, rank=rank, num_ranks=num_ranks))
        for rank in range(num_ranks)
    ]
    assert [len(batches) for batches in shares] == [4] * num_ranks
    for part, *pieces in zip(alone, *shares, strict=True):
        assert torch.equal(torch.cat([piece.images for piece in pieces]), part.images)
        assert [name for piece in pieces for name in piece.image_ids] == part.image_ids


def test_two_processes_reach_the_weights_and_metrics_of_one(tiny: Make, tmp_path: Path) -> None:
    """With the statistics of all images, the ranks' gradients add up to that of the whole batch, up to rounding."""
    options = [*OPTIONS, "evaluate.score_threshold=0.0001"]
    config = tiny([*options, "train.sync_batchnorm=true"], run="two")
    result = subprocess.run(torchrun(config, tmp_path), capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    metrics = json.loads(result.stdout)  # only rank 0 prints

    alone = tiny(options, run="one")
    train(alone)
    one, two = (load_checkpoint(Path(str(c.run_dir)) / "last.safetensors") for c in (alone, config))
    # A millionth of noise in the images moves these gradients by two percent (maxima and slopes flip), so they cannot
    # agree to the last digits; the statistics of the forward pass do.
    momentum, statistics = one.group("momentum"), one.group("model")
    for name, value in momentum.items():
        assert (value - two.group("momentum")[name]).norm() < 0.2 * value.norm(), name
    for name, value in statistics.items():
        if name.endswith(("running_mean", "running_var")):
            assert torch.allclose(value, two.group("model")[name], rtol=1e-4, atol=1e-5), name
    lines = [Path(str(c.run_dir), "metrics.jsonl").read_text().splitlines() for c in (alone, config)]
    assert len(lines[0]) == len(lines[1])

    loaded = load_detector(Path(str(config.run_dir)) / "last.safetensors")
    predictor = Predictor.from_loaded(loaded, evaluation_thresholds(config.evaluate))
    measured = evaluate(predictor, open_split(config, "val")).compute()
    assert measured["ar100"] > 0
    for name in ("ap", "ap50", "ar100", "darknet", "per_class"):
        assert metrics[name] == measured[name], "an evaluation shared by the ranks has the same result"


SYNCHRONIZED = """
import os, torch, torch.distributed as dist
from detector.train.distributed import join_ranks, synchronize_batchnorm
generator = torch.Generator().manual_seed(0)
images, weights = (3 * torch.randn(6, 5, 4, 7, generator=generator) + 1 for _ in range(2))
images[:, 4] = 1000 + 0.1 * images[:, 4]  # a mean far above the spread
def gradients(norm, part):
    part_images = images[part].clone().requires_grad_()
    loss = (norm(part_images) * weights[part]).square().sum()
    return torch.autograd.grad(loss, [part_images, norm.weight, norm.bias])
with join_ranks() as ranks:
    whole, shared = torch.nn.BatchNorm2d(5), torch.nn.Sequential(torch.nn.BatchNorm2d(5))
    synchronize_batchnorm(shared)
    mine = slice(3 * ranks.rank, 3 * ranks.rank + 3)
    expected, found = gradients(whole, slice(0, 6)), list(gradients(shared[0], mine))
    for gradient in found[1:]:
        dist.all_reduce(gradient)
    # Channel 4: compare only the statistics; its float32 gradient depends on the formula.
    torch.testing.assert_close(found[0][:, :4], expected[0][mine][:, :4], rtol=1e-4, atol=1e-4)
    for one, other in zip(found[1:], expected[1:]):
        torch.testing.assert_close(one[:4], other[:4], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(shared[0].running_var, whole.running_var, rtol=1e-4, atol=0)
    torch.testing.assert_close(shared[0].running_mean, whole.running_mean)
    os.write(1, b"compared on %d\\n" % ranks.rank)  # one write: both ranks share one pipe
"""


def test_synchronized_normalisation_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    script = tmp_path / "compare.py"
    script.write_text(SYNCHRONIZED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run([*launcher, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert sorted(result.stdout.split("\n")) == ["", "compared on 0", "compared on 1"]


def test_a_rank_that_dies_is_restarted_and_nothing_changes(tiny: Make, tmp_path: Path) -> None:
    options = [*OPTIONS, "train.max_steps=8", "train.save_every=2"]
    config = tiny(options, run="run")
    last = Path(str(config.run_dir)) / "last.safetensors"
    subprocess.run(torchrun(config, tmp_path), check=True, capture_output=True, cwd=tmp_path)
    expected = last.read_bytes()
    last.parent.rename(tmp_path / "straight")

    options = ["--max-restarts", "1", "--shutdown-timeout", "3"]
    command = [*torchrun(config, tmp_path, *options), "--resume"]
    with launched(command, tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
        wait_for(last)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert load_checkpoint(last).info["step"] < 8, "killed too late to prove anything"
        with suppress(subprocess.TimeoutExpired):
            launcher.wait(timeout=25)
    # PyTorch's own rendezvous sometimes fails after a restart ("Connection refused"), and the launcher gives up or
    # hangs. The test then starts it again with the same command, as a job system would.
    if launcher.returncode != 0:
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    assert last.read_bytes() == expected


def test_a_stopped_launcher_gives_the_ranks_time_to_save(tiny: Make, tmp_path: Path) -> None:
    config = tiny([*OPTIONS, "train.max_steps=2000", "train.save_every=1000"])
    record = Path(str(config.run_dir)) / "metrics.jsonl"
    with launched(torchrun(config, tmp_path), tmp_path, stderr=subprocess.PIPE) as launcher:
        wait_for(record)
        launcher.terminate()
        errors = launcher.communicate(timeout=90)[1]
    (line,) = [line for line in errors.splitlines() if line.startswith("stopped after step")]
    saved = load_checkpoint(record.parent / "last.safetensors").info["step"]
    assert 0 < saved < 1000
    assert line.startswith(f"stopped after step {saved}; continue with --resume")


def test_a_loss_that_is_not_finite_stops_all_ranks_with_one_line(tiny: Make, tmp_path: Path) -> None:
    config = tiny([*OPTIONS, "train.max_steps=50", "train.learning_rate=1e30"])
    result = subprocess.run(torchrun(config, tmp_path), capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "not finite" in line


def test_two_machines_without_shared_storage(tiny: Make, tmp_path: Path) -> None:
    """Two launchers, each in its own folder: the run's folder is in only one of them."""
    config = replace(tiny([*OPTIONS, "train.max_steps=3"]), run_dir="run")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "test"]
    command += [str(ROOT / "tools/train.py"), str(tmp_path / "config.yaml")]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    for machine in ("a", "b"):
        (tmp_path / machine).mkdir()
    with launched(command, tmp_path / "a", **streams) as first, launched(command, tmp_path / "b", **streams) as second:
        errors = [launcher.communicate(timeout=200)[1] for launcher in (first, second)]
        assert [first.returncode, second.returncode] == [0, 0], errors
    (run_dir,) = tmp_path.glob("*/run")
    assert load_checkpoint(run_dir / "last.safetensors").info["step"] == 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def test_a_batch_that_cannot_be_shared_is_refused(tiny: Make) -> None:
    from detector.train.loop import _check_ranks

    config = tiny(["train.batch_size=6", "train.subdivisions=3"])
    with pytest.raises(InputError, match=r"batch_size 6 cannot be shared by 4 processes in 3 parts; .* multiple of 12"):
        _check_ranks(config, Ranks(0, 4, torch.device("cpu")))


def test_a_single_process_does_not_communicate() -> None:
    alone = Ranks(0, 1, torch.device("cpu"))
    network = torch.nn.Conv2d(1, 1, 1)
    assert alone.sum([1.0, 2.0]) == [1, 2]
    assert alone.gather([3]) == [3]
    assert alone.broadcast("x") == "x"
    alone.wait()
    alone.sum_gradients(network)


def test_synchronized_normalisation_keeps_names_and_parameters() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Sequential(torch.nn.BatchNorm2d(4)))
    before = dict(network.state_dict(keep_vars=True))
    synchronize_batchnorm(network)
    assert isinstance(network[1][0], SynchronizedBatchNorm)  # type: ignore[index]
    after = network.state_dict(keep_vars=True)
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
