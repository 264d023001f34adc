"""The processors that a container grants."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from detector.runtime import threads
from detector.runtime.threads import computes_in_bf16, cpu_name, usable_cpus


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_the_cgroup_limits_the_threads(
    tmp_path: Path, files: dict[str, str], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    everything = usable_cpus(tmp_path / "none")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert usable_cpus(tmp_path) == (expected or everything)


@pytest.mark.parametrize(
    ("text", "expected"), [("1", 1), ("3", 3), (" 2,8", 2), ("9999", 4), ("0", 4), ("", 4), ("many", 4)]
)
def test_omp_num_threads_limits_the_threads(
    text: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert usable_cpus(tmp_path / "none") == expected


def test_the_processor_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU 9000\n")
    assert cpu_name(tmp_path / "cpuinfo") == "Some CPU 9000"
    assert isinstance(cpu_name(tmp_path / "none"), str)


@pytest.mark.parametrize(("idle", "passive"), [(0.3, True), (0.6, False)])
def test_waiting_threads_sleep_beside_other_programs(
    idle: float, passive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: 2)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    counters = iter([100.0, 100.0 + idle])
    monkeypatch.setattr(threads, "_idle_seconds", lambda _: next(counters))
    message = threads.share_processors(seconds=0.3)
    assert bool(message) == passive == (os.environ.pop("OMP_WAIT_POLICY", "") == "passive")


def test_the_idle_time_of_the_usable_processors(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    mine = sorted(os.sched_getaffinity(0))
    lines = [f"cpu{number} 9 0 9 {ticks} {ticks} 0" for number in (*mine, 4096)]
    (tmp_path / "stat").write_text("\n".join(["cpu  1 1 1 1 1", *lines]))
    assert threads._idle_seconds(tmp_path / "stat") == 2 * len(mine)
    assert threads._idle_seconds(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("flags", "expected"), [("fpu avx512_bf16", True), ("amx_bf16 fpu", True), ("fpu avx512f avx512_bf16x", False)]
)
def test_bfloat16_is_read_from_the_flags(flags: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert computes_in_bf16(tmp_path / "cpuinfo") is expected
