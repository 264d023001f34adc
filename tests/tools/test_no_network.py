"""Nothing is looked up in a network, and nothing is written outside the project and the temporary folder.

The calls are intercepted below Python, where native libraries make theirs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void record(const char *what, const char *name) {
    FILE *log = fopen(getenv("NETWORK_LOG"), "a");
    if (log) { fprintf(log, "%s %s\n", what, name ? name : "-"); fclose(log); }
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    record("getaddrinfo", node);
    return EAI_FAIL;
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    if (address->sa_family == AF_INET || address->sa_family == AF_INET6) record("connect", "internet");
    return ((int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect"))(socket, address, length);
}
"""
EVERYTHING = """
import sys, time
from pathlib import Path
import numpy as np
from detector.export.gate import export
from detector.export.gate_data import gather_gate_data
from detector.export.request import Request
from detector.inference.backends import possible_backends
from detector.inference.find import load_any
from detector.inference.weights import load_detector
from detector.inference.predictor import Predictor

loaded, out = load_detector(sys.argv[1]), Path(sys.argv[2])
image = np.zeros((96, 96, 3), np.uint8)
for to, name in (("onnx", "a.onnx"), ("openvino", "a.xml"), ("darknet", "a.cfg")):
    export(loaded, Request(to, out / name), gather_gate_data(loaded))
for model in (loaded, load_any(out / "a.onnx"), load_any(out / "a.xml")):
    for backend in possible_backends(model):
        Predictor.from_loaded(model, backend=backend).predict(image)
import nncf
import detector.data.transforms
import detector.report.html
time.sleep(float(sys.argv[3]))
"""
CONTROL = "import socket\ntry: socket.create_connection(('example.org', 80))\nexcept OSError: pass"


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / "shim.so"), str(folder / "shim.c"), "-ldl"]
    subprocess.run(command, check=True)
    return folder / "shim.so"


def calls(shim: Path, tmp_path: Path, code: str, *arguments: str) -> tuple[list[str], list[str]]:
    """The network calls of a program, and the files that it wrote into an empty home."""
    home, log = tmp_path / "home", tmp_path / "network.log"
    home.mkdir()
    environment = {**os.environ, "LD_PRELOAD": str(shim), "NETWORK_LOG": str(log), "HOME": str(home)}
    for name in ("ORT_DISABLE_TELEMETRY", "NO_ALBUMENTATIONS_UPDATE", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True, cwd=tmp_path)
    lines = log.read_text().splitlines() if log.exists() else []
    return lines, [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


def test_the_shim_sees_a_call(shim: Path, tmp_path: Path) -> None:
    assert calls(shim, tmp_path, CONTROL)[0] == ["getaddrinfo example.org"]


def test_nothing_uses_the_network_or_the_home_folder(shim: Path, tmp_path: Path, trained_run: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    seconds = "12"  # ONNX Runtime would look up its host some 9 seconds after its start
    assert calls(shim, tmp_path, EVERYTHING, str(trained_run / "best.safetensors"), str(out), seconds) == ([], [])
