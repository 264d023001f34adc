"""cfg text and weights files: errors name the file and the line; no input crashes the program."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.darknet import build_darknet, load_darknet
from detector.darknet.cfg import format_cfg, parse_cfg
from detector.darknet.names import find_names, read_names
from detector.darknet.weights import WeightsHeader, read_header, weights_size
from detector.errors import InputError

SMALL = """[net]
width=32
height=32
# a comment
[convolutional]
batch_normalize=1
filters=4   ; another one
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=14
size=1
activation=linear

[yolo]
mask=0,1
anchors=4,5, 8,9
classes=2
num=2
"""


def small(tmp_path: Path) -> Path:
    (tmp_path / "small.cfg").write_text(SMALL)
    return tmp_path / "small.cfg"


def test_parse_by_hand_and_back() -> None:
    sections = parse_cfg(SMALL, "x.cfg")
    assert [section.name for section in sections] == ["net", "convolutional", "convolutional", "yolo"]
    assert sections[1].integer("filters", 1) == 4
    assert sections[1].options["filters"] == ("4", 7)
    assert sections[3].numbers("anchors") == [4, 5, 8, 9]
    text = format_cfg([(s.name, {key: value for key, (value, _) in s.options.items()}) for s in sections])
    again = parse_cfg(text, "y.cfg")
    assert [(s.name, {k: v for k, (v, _) in s.options.items()}) for s in again] == [
        (s.name, {k: v for k, (v, _) in s.options.items()}) for s in sections
    ]
    assert format_cfg([("yolo", {"anchors": [1.0, 2.5], "x": 0.5})]) == "[yolo]\nanchors=1,2.5\nx=0.5\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("filters=4 ", "filters=many ", r"x.cfg, line 7: \[convolutional\] filters=many: expected a number"),
        ("filters=4 ", "filters=0 ", "line 7: .*expected a whole number from 1"),
        ("filters=4 ", "filters=99999999 ", "line 7: .*expected a whole number"),
        ("activation=leaky", "activation=selu", "line 11: .*expected one of leaky"),
        ("[yolo]", "[region]", r"line 18: unknown section \[region\]"),
        ("[yolo]", "[yolo", r"line 18: expected \[section\]"),
        ("size=3", "size 3", "line 8: expected key=value"),
        ("classes=2", "classes=3", "line 21: .*need filters=16 in the layer before, not 14"),
        ("mask=0,1", "mask=0,5", "line 19: .*indices of the 2 anchors"),
        ("[net]", "[convolutional]", r"does not start with \[net\]"),
        ("[yolo]", "[route]\nlayers=-9\n[yolo]", "line 19: .*expected layers from 0 to 1, or -1 to -2"),
        ("[yolo]", "[shortcut]\nfrom=2\n[yolo]", "line 19: .*expected layers"),
        ("[yolo]", "[sam]\nfrom=-2\n[yolo]", "line 19: .*do not fit"),
        ("stride=2", "stride=2\ngroups=3", "line 10: .*groups=3: expected a divisor of 3 inputs and 4 filters"),
    ],
)
def test_an_error_names_its_line(old: str, new: str, message: str) -> None:
    assert old in SMALL
    with pytest.raises(InputError, match=message):
        build_darknet(SMALL.replace(old, new), "x.cfg")


@pytest.mark.parametrize("section", ["[shortcut]\nfrom=-1", "[sam]\nfrom=-1", "[route]\nlayers=-1,-1"])
def test_a_section_may_read_one_layer_twice(section: str) -> None:
    text = SMALL.replace("[convolutional]\nfilters=14", f"{section}\n[convolutional]\nfilters=14")
    network = build_darknet(text, "x.cfg")
    with torch.no_grad():
        assert network(torch.rand(1, 3, 32, 32))[0].shape == (1, 14, 16, 16)


def test_a_repeated_key_counts_as_in_darknet(caplog: pytest.LogCaptureFixture) -> None:
    sections = parse_cfg("[net]\nwidth=32\nwidth=64\n[avgpool]\n", "x.cfg")
    assert sections[0].integer("width", 1) == 32
    assert "x.cfg, line 3: [net] width appears twice" in caplog.text


def test_a_mistyped_size_allocates_no_memory() -> None:
    layer = "[convolutional]\nfilters=4000\nsize=3\nactivation=linear\n"
    with pytest.raises(InputError, match="weights; at most"):
        build_darknet("[net]\nwidth=32\nheight=32\n" + layer * 6, "x.cfg")


def test_unknown_keys_warn_with_their_line(caplog: pytest.LogCaptureFixture) -> None:
    build_darknet(SMALL.replace("stride=2", "strid=2"), "x.cfg")
    assert "x.cfg, line 9: [convolutional] strid=2 is unknown and ignored" in caplog.text
    build_darknet(SMALL.replace("height=32", "heigth=32"), "x.cfg")
    assert "x.cfg, line 3: [net] heigth=32 is unknown and ignored" in caplog.text


@pytest.mark.parametrize(("major", "minor", "length"), [(0, 1, 16), (0, 2, 20)])
def test_old_and_new_headers(major: int, minor: int, length: int, tmp_path: Path) -> None:
    cfg = small(tmp_path)
    network = load_darknet(cfg)
    network.header = WeightsHeader(major, minor, 0, 123456)
    network.save_weights(tmp_path / "w.weights")
    content = (tmp_path / "w.weights").read_bytes()
    assert len(content) == length + 4 * (4 * 4 + 4 * 27 + 14 + 14 * 4)
    again = load_darknet(cfg, tmp_path / "w.weights")
    assert again.header == WeightsHeader(major, minor, 0, 123456)
    again.save_weights(tmp_path / "v.weights")
    assert (tmp_path / "v.weights").read_bytes() == content


def test_short_long_and_wrong_files(tmp_path: Path) -> None:
    cfg = small(tmp_path)
    network = load_darknet(cfg)
    network.save_weights(tmp_path / "w.weights")
    content = (tmp_path / "w.weights").read_bytes()
    assert len(content) == weights_size(network.convolutions())
    for changed, message in (
        (content[:-8], r"ends 8 bytes before layer 1 \[convolutional\] is complete"),
        (content[:40], r"before layer 0 \[convolutional\]"),
        (content + b"1234", "4 bytes are left after the last layer"),
        (b"\x07" * 40, "not a Darknet weights file: its header says version"),
        (b"", "only 0 bytes"),
        (content[:18], "only 18 bytes"),
    ):
        (tmp_path / "bad.weights").write_bytes(changed)
        before = [tensor.clone() for tensor in network.state_dict().values()]
        with pytest.raises(InputError, match=message):
            network.load_weights(tmp_path / "bad.weights")
        after = network.state_dict().values()
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "half a file was loaded"
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_darknet(cfg, tmp_path / "none.weights")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_darknet(tmp_path / "none.cfg")


REAL_LINES = [*filter(None, SMALL.splitlines()), "[route]", "layers=-1,-2", "[shortcut]", "from=-2"]
KEYS = ["filters", "size", "stride", "pad", "groups", "dilation", "layers", "from", "mask", "anchors", "classes", "num"]
VALUES = st.one_of(st.integers(-(10**12), 10**12), st.text(max_size=8), st.floats())
LINES = st.one_of(
    st.sampled_from(REAL_LINES),
    st.builds(lambda key, value: f"{key}={value}", st.sampled_from(KEYS), VALUES),
    st.text(max_size=20),
)


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(LINES, max_size=30))
def test_any_text_is_built_or_refused(lines: list[str]) -> None:
    try:
        network = build_darknet("\n".join(["[net]\nwidth=32\nheight=32", *lines]), "fuzz.cfg")
    except InputError as refused:
        message = str(refused)
    else:
        message = "fuzz.cfg" if network.layers else "built without layers"
        if max(h * w * c for c, h, w in network.shapes) < 1 << 20:
            with torch.no_grad():
                outputs = network(torch.zeros(1, *network.size_chw), all_layers=True)
            pairs = zip(outputs, network.shapes, network.kinds, strict=True)
            assert all(kind == "softmax" or tuple(out.shape[1:]) == shape for out, shape, kind in pairs)
    assert "fuzz.cfg" in message


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=900), st.binary(max_size=900).map(lambda b: struct.pack("<iiiQ", 0, 2, 5, 0) + b)))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    cfg = small(tmp_path)
    (tmp_path / "fuzz.weights").write_bytes(content)
    network = load_darknet(cfg)
    if len(content) == weights_size(network.convolutions()) and content[:8] == struct.pack("<ii", 0, 2):
        network.load_weights(tmp_path / "fuzz.weights")
    else:
        with pytest.raises(InputError, match=r"fuzz.weights"):
            network.load_weights(tmp_path / "fuzz.weights")


def test_names(tmp_path: Path) -> None:
    (tmp_path / "a.names").write_text("\ncat\n\ndog\n\n")
    assert read_names(tmp_path / "a.names") == ("class0", "cat", "class2", "dog")
    assert find_names(tmp_path / "x.cfg", 4) == ("class0", "cat", "class2", "dog")
    assert find_names(tmp_path / "x.cfg", 3) == ("class0", "class1", "class2")
    (tmp_path / "twice.names").write_text("cat\ndog\ncat\n")
    with pytest.raises(InputError, match=r"the class name 'cat' appears twice; give each class a name of its own"):
        read_names(tmp_path / "twice.names")
    (tmp_path / "twice.names").unlink()
    coco = ["person", *(f"n{index}" for index in range(77)), "motorbike", "tvmonitor"]
    (tmp_path / "coco.names").write_text("\n".join(coco))
    assert read_names(tmp_path / "coco.names")[-2:] == ("motorcycle", "tv")
    with pytest.raises(InputError, match="no such file of class names"):
        read_names(tmp_path / "none")


def test_the_names_of_a_cfg_are_its_own_and_ambiguity_is_an_error(tmp_path: Path) -> None:
    cfg = tmp_path / "helmet.cfg"
    assert find_names(cfg, 2) == ("class0", "class1")
    (tmp_path / "a.names").write_text("mask\nface\n")
    assert find_names(cfg, 2) == ("mask", "face")
    (tmp_path / "b.names").write_text("cat\ndog\n")
    with pytest.raises(InputError, match=r"several files of 2 class names are beside it .*choose one with --names"):
        find_names(cfg, 2)
    (tmp_path / "helmet.names").write_text("helmet\nhead\n")
    assert find_names(cfg, 2) == ("helmet", "head")
    with pytest.raises(InputError, match=r"has 2 class names, .* has 3 classes"):
        find_names(cfg, 3)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("convolutional", "xnor=1"),
        ("convolutional", "antialiasing=1"),
        ("maxpool", "antialiasing=1"),
        ("shortcut", "weights_type=per_feature"),
        ("scale_channels", "scale_wh=1"),
    ],
)
def test_what_changes_the_outputs_and_is_not_computed_is_refused_by_name(section: str, key: str) -> None:
    text = f"[net]\nheight=32\nwidth=32\n[convolutional]\nfilters=3\n[{section}]\nfrom=-1\nactivation=linear\n{key}\n"
    with pytest.raises(InputError, match=rf"x.cfg, line 9: \[{section}\] {key}: is not supported"):
        build_darknet(text, "x.cfg")
    build_darknet(text.replace(key, key.split("=")[0] + "=0"), "x.cfg")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("channels=1", r"\[net\] channels=1: expected 3"),
        ("height=240", r"\[net\] height=240: gives cells of 30 pixels; expected a multiple of 32"),
        ("width=100", r"\[net\] width=100: gives cells of 25 pixels"),
    ],
)
def test_inputs_that_are_not_computed_as_darknet_does_are_refused(line: str, message: str) -> None:
    sizes = {"channels": "3", "height": "64", "width": "64"} | dict([line.split("=")])
    halves = "[conv]\nbatch_normalize=1\nfilters=18\nsize=3\nstride=2\npad=1\nactivation=leaky\n" * 5
    net = "".join(f"{key}={value}\n" for key, value in sizes.items())
    yolo = "[yolo]\nmask=0,1,2\nanchors=1,1,2,2,3,3\nclasses=1\nnum=3\n"
    with pytest.raises(InputError, match=message):
        build_darknet(f"[net]\n{net}{halves}{yolo}", "x.cfg")
    build_darknet(f"[net]\nwidth=64\nheight=96\n{halves}{yolo}", "x.cfg")


def test_headers_of_other_versions(tmp_path: Path) -> None:
    for version, wide in (((0, 1), False), ((0, 2), True), ((0, 3), True), ((1, 0), True)):
        content = struct.pack("<iii" + ("Q" if wide else "I"), *version, 0, 64)
        header, length = read_header(content, "x.weights")
        assert (header.seen, length) == (64, len(content))
