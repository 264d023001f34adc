"""Public models by name, fetched from a local server that breaks off, lies, and serves the wrong thing."""

from __future__ import annotations

import hashlib
import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from file_server import FileServer
from toy_cfg import TOY_CFG

from detector.darknet.network import build_darknet
from detector.errors import InputError
from detector.inference.find import find_trainable
from detector.zoo import table
from detector.zoo.fetch import fetch
from detector.zoo.table import ZooModel, by_hand, cfg_of, coco_names, weights_of, zoo

ROOT = Path(__file__).resolve().parents[2]
MODEL = ZooModel("toy", "detector", 64, "me/toy/raw/toy.cfg", "me/toy/releases/toy.weights", 0, "none")


@pytest.fixture
def server(tmp_path: Path, file_server: FileServer) -> FileServer:
    network = build_darknet(TOY_CFG, "toy.cfg")
    torch.manual_seed(0)
    network.save_weights(tmp_path / "made.weights")
    weights = (tmp_path / "made.weights").read_bytes()
    file_server.files = {f"/{MODEL.cfg}": TOY_CFG.encode(), f"/{MODEL.weights}": weights}
    return file_server


def get(server: FileServer, root: Path, **changes: object) -> str:
    weights = server.files[f"/{MODEL.weights}"]
    model = replace(MODEL, **{"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest(), **changes})
    return fetch(model, root=root, host=f"{server.address}/", progress=False)


def test_a_model_is_fetched_once_and_checked(server: FileServer, tmp_path: Path) -> None:
    verdict = get(server, tmp_path / "zoo")
    assert "sha256 as published; the weights fit the cfg to the last byte" in verdict
    assert len(server.requests) == 2
    assert find_trainable(str(tmp_path / "zoo/toy/toy.cfg")).class_names == coco_names()
    get(server, tmp_path / "zoo")
    assert len(server.requests) == 2, "fetched again without need"


def test_the_first_hash_is_kept_where_none_is_published(server: FileServer, tmp_path: Path) -> None:
    assert "recorded in" in get(server, tmp_path, sha256=None)
    assert "compared with the first download" in get(server, tmp_path, sha256=None)
    (tmp_path / "toy/toy.weights").unlink()
    content = bytearray(server.files[f"/{MODEL.weights}"])
    content[-1] ^= 1
    server.files[f"/{MODEL.weights}"] = bytes(content)
    with pytest.raises(InputError, match=r"toy.weights: is another file than the one fetched before"):
        get(server, tmp_path, sha256=None)
    assert not (tmp_path / "toy/toy.weights").exists()


def test_a_broken_download_goes_on(server: FileServer, tmp_path: Path) -> None:
    server.break_after = len(TOY_CFG)
    with pytest.raises(InputError, match="run the same command again to resume"):
        get(server, tmp_path)
    server.break_after = None
    assert "fit the cfg" in get(server, tmp_path)


@pytest.mark.parametrize("claims", [-100, 100])
def test_a_server_that_lies_about_the_length(server: FileServer, tmp_path: Path, claims: int) -> None:
    get(server, tmp_path / "first")
    (tmp_path / "second/toy").mkdir(parents=True)
    (tmp_path / "second/toy/toy.cfg").write_text(TOY_CFG)
    server.claims = claims
    with pytest.raises(InputError, match="this is not the file"):
        get(server, tmp_path / "second")


def test_a_wrong_hash(server: FileServer, tmp_path: Path) -> None:
    for kind, digits in (("sha256", 64), ("md5", 32)):
        with pytest.raises(InputError, match=rf"toy.weights: {kind} \w+ instead of 0+; removed"):
            get(server, tmp_path, **{"sha256": None, kind: "0" * digits})
        assert not (tmp_path / "toy/toy.weights").exists()


def test_a_page_instead_of_a_file(server: FileServer, tmp_path: Path) -> None:
    page = b"<!DOCTYPE html><p>not found</p>"
    server.files[f"/{MODEL.cfg}"] = page
    with pytest.raises(InputError, match=r"toy.cfg: the server sent a web page instead of the file; removed"):
        get(server, tmp_path)
    server.files[f"/{MODEL.cfg}"] = TOY_CFG.encode()
    (tmp_path / "toy/toy.weights").unlink()
    server.files[f"/{MODEL.weights}"] = page.ljust(len(server.files[f"/{MODEL.weights}"]))
    with pytest.raises(InputError, match=r"toy.weights: the server sent a web page"):
        get(server, tmp_path)
    assert not list((tmp_path / "toy").glob("*.weights"))


def test_a_cfg_of_another_model(server: FileServer, tmp_path: Path) -> None:
    server.files[f"/{MODEL.cfg}"] = TOY_CFG.replace("filters=8", "filters=16").encode()
    with pytest.raises(InputError, match="cfg and weights do not belong together"):
        get(server, tmp_path)
    assert not (tmp_path / "toy/toy.cfg").exists()


def test_redirects_leave_the_web_never(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(TOY_CFG)
    server.redirect = (tmp_path / "secret").as_uri()
    with pytest.raises(InputError, match="302"):
        get(server, tmp_path / "zoo")
    assert not (tmp_path / "zoo/toy/toy.cfg").exists()


def test_missing_files_and_wrong_addresses(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="404"):
        get(server, tmp_path, cfg="me/toy/raw/other.cfg")
    for host in ("file:///etc", "ftp://example.org", "example.org"):
        with pytest.raises(InputError, match="expected an address that begins with"):
            fetch(MODEL, root=tmp_path, host=host)
    monkeypatch.setenv("DETECTOR_ZOO_URL", "http://127.0.0.1:1")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1/me/toy"):
        fetch(MODEL, root=tmp_path, progress=False)


def test_no_room(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.data.download.shutil.disk_usage", lambda folder: SimpleNamespace(free=1))
    with pytest.raises(InputError, match="free some space"):
        get(server, tmp_path)


def test_a_name_is_a_model_for_every_tool(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table, "zoo", lambda: {"toy": MODEL})
    with pytest.raises(InputError, match=r"toy: is not here yet; fetch it with: python tools/download\.py toy"):
        cfg_of("toy")
    get(server, table.FOLDER)
    assert weights_of("toy") == "weights/zoo/toy/toy.weights"
    assert cfg_of("weights/zoo/toy/toy.cfg") == "weights/zoo/toy/toy.cfg", "a path stays"

    def run(tool: str, *words: str) -> str:
        assert runpy.run_path(str(ROOT / "tools" / f"{tool}.py"))["main"](list(words)) in (0, None)
        return capsys.readouterr().out

    picture = str(ROOT / "demo.jpg")
    assert json.loads(run("demo", "toy", "--image", picture, "--json").splitlines()[0])["name"]
    run("predict", picture, "--model", "toy", "--out", "out.json")
    run("export", "toy", "--to", "onnx", "--out", "toy.onnx")
    assert "backend" in run("benchmark", "toy", "--backends", "torch", "--rounds", "1")
    assert "BFLOPs" in run("analyze", "toy")
    run("train", "toy", "--weights", "toy", "--show-config")
    with pytest.raises(InputError, match="expected bccd, coco, voc, or a model of --list, got nonsense"):
        run("download", "nonsense")


def test_the_table() -> None:
    assert len(zoo()) == 16
    assert len(by_hand()) == 4
    assert len(set(coco_names())) == 80
    for name, row in zoo().items():
        assert row.kind in ("detector", "classifier")
        assert row.bytes > 10**6
        assert row.sha256 is None or len(row.sha256) == 64
        assert row.md5 is None or len(row.md5) == 32
        assert row.weights.endswith(".weights")
        assert row.cfg.endswith(f"{name}.cfg")
        assert (row.ap50 is None) == (row.kind == "classifier")
    with pytest.raises(InputError, match=r"by hand from .*csdarknet53-panet-spp.weights \(257,717,640 bytes\)"):
        cfg_of("csdarknet53-panet-spp")


@pytest.mark.parametrize("name", ["yolov4-tiny", "yolov4", "yolov3", "yolov3-tiny", "yolov3-tiny-prn", "resnet10"])
def test_sizes_are_those_that_the_layers_need(name: str, shared: Path) -> None:
    from detector.darknet.weights import weights_size

    text = (shared / "darknet/cfg" / f"{name}.cfg").read_text()
    assert weights_size(build_darknet(text, name).convolutions()) == zoo()[name].bytes


def test_yolo_fastest_by_name(
    shared: Path, tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real weights, from the local server, by name: the boxes that Darknet finds."""
    row, folder = zoo()["yolo-fastest-1.1"], shared / "darknet/weights"
    for path in (row.cfg, row.weights):
        server.files[f"/{path}"] = (folder / Path(path).name).read_bytes()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTOR_ZOO_URL", server.address)
    assert runpy.run_path(str(ROOT / "tools/download.py"))["main"](["yolo-fastest-1.1"]) == 0
    by_name, by_path = find_trainable("yolo-fastest-1.1"), find_trainable(str(folder / "yolo-fastest-1.1.cfg"))
    assert by_name.class_names == by_path.class_names
    for one, other in zip(by_name.network.parameters(), by_path.network.parameters(), strict=True):
        assert torch.equal(one, other)
    data = str(shared / "data/coco_val126/instances.json")
    assert (
        runpy.run_path(str(ROOT / "tools/eval.py"))["main"](["yolo-fastest-1.1", "--data", data, "--json", "a.json"])
        == 0
    )
    measured = json.loads((tmp_path / "a.json").read_text())
    assert measured["darknet"]["map50"] == pytest.approx(0.3273, abs=0.003), "Darknet's own figure"
