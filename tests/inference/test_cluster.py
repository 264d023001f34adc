"""Images on a real cluster of Ray with two nodes: the same bytes, also when a node or the driver is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

ray = pytest.importorskip("ray")
ROOT = Path(__file__).resolve().parents[2]
PREDICT = str(ROOT / "tools/predict.py")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(ROOT)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()
    del os.environ["PYTHONPATH"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred images, one of them damaged."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(200):
        image = cv2.GaussianBlur(rng.integers(0, 255, (60, 80, 3), np.uint8), (5, 5), 0)
        cv2.imwrite(str(folder / f"{number:03d}.png"), image)
    (folder / "100.png").write_bytes(b"damaged")
    return folder


def command(images: Path, weights: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, PREDICT, str(images), "--weights", str(weights), "--out", str(out), *more]


def run(*arguments: str) -> None:
    finished = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 1, finished.stderr  # 1: one image is damaged
    assert "1 images skipped" in finished.stdout


@pytest.fixture(scope="module")
def expected(images: Path, random_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process writes."""
    out = tmp_path_factory.mktemp("one") / "results.json"
    run(*command(images, random_weights, out))
    return out.read_bytes()


def test_two_nodes_write_the_same_bytes(
    cluster: Any, images: Path, random_weights: Path, expected: bytes, tmp_path: Path
) -> None:
    run(*command(images, random_weights, tmp_path / "out.json", "--ray", cluster.address))
    assert (tmp_path / "out.json").read_bytes() == expected


def test_a_killed_driver_resumes_and_a_killed_node_is_replaced(
    cluster: Any, images: Path, random_weights: Path, expected: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    words = command(images, random_weights, out, "--ray", cluster.address)
    partial = out.with_name("out.json.partial")
    for kills in range(2):
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
            wait_for_lines(partial, 20 + 40 * kills, driver)
            driver.send_signal(signal.SIGKILL)
    before = partial.read_bytes()
    node = cluster.add_node(num_cpus=1)
    timer = threading.Timer(6, lambda: cluster.remove_node(node, allow_graceful=False))
    timer.start()
    run(*words)
    timer.join()
    assert before.count(b"\n") > 40
    assert out.read_bytes() == expected
    assert not partial.exists()


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_shards_of_processes_that_know_nothing_of_each_other(
    images: Path, random_weights: Path, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        out = tmp_path / f"{number}.jsonl"
        words = command(images, random_weights, out, "--shard", f"{number}/3")
        assert subprocess.run(words, capture_output=True, check=False).returncode in (0, 1)
    lines = [line for number in (1, 2, 3) for line in (tmp_path / f"{number}.jsonl").read_text().splitlines()]
    assert len({line.split(",")[0] for line in lines}) == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray", "127.0.0.1:1"], "error: --ray 127.0.0.1:1: no cluster there"),
        (["--shard", "4/3"], "error: --shard 4/3: expected NUMBER/COUNT"),
    ],
)
def test_bad_arguments(images: Path, random_weights: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    words = command(images, random_weights, tmp_path / "out.json", *arguments)
    finished = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
