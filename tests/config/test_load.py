"""The experiment file: complete, typed, and every error names its key."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from detector.config import load_config, load_run_config, to_yaml
from detector.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_run_config(path)
    assert config.run_dir == f"weights/{path.stem}"
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config))
    assert load_run_config(copy) == config
    assert path.read_text().startswith("# "), "the header (command, time, result) is missing"


def test_every_run_has_a_folder_of_its_own() -> None:
    assert len({path.stem for path in CONFIGS}) == len(CONFIGS)


def test_detectors_of_the_paper_differ_in_the_network_the_size_and_the_box_loss_only() -> None:
    first = load_config(ROOT / "configs/csppelee_efm.yaml")
    for path in (ROOT / "configs/coco").glob("*.yaml"):
        config = load_config(path)
        for section in ("data", "augment", "train", "evaluate"):
            assert getattr(config, section) == getattr(first, section), path
        assert replace(config.loss, box=first.loss.box, box_weight=first.loss.box_weight) == first.loss, path
        assert config.model.class_names == first.model.class_names, path


def test_a_classifiers_config_is_not_taken_for_a_detectors() -> None:
    with pytest.raises(InputError, match="task: classify"):
        load_config(ROOT / "configs/classify_tiny.yaml")


def test_overrides_and_exponents() -> None:
    config = load_config(
        ROOT / "configs/tiny.yaml", ["train.learning_rate=1e-3", "preprocess.size_hw=[64, 96]", "run_dir=/x"]
    )
    assert config.train.learning_rate == 0.001
    assert config.preprocess.size_hw == (64, 96)
    assert config.run_dir == "/x"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=1", "unknown key 'train.lr'"),
        ("nothing.here=1", "no section 'nothing'"),
        ("train.max_steps", "expected a.b=value"),
        ("train.max_steps=soon", "train.max_steps: .*valid integer, got 'soon'"),
        ("train.max_steps='4'", "train.max_steps: .*valid integer"),
        ("train.max_steps=0", "train.max_steps: .*greater than or equal to 1, got 0"),
        ("train.subdivisions=3", "subdivisions: expected a divisor of batch_size"),
        ("train.scales=[1.0]", "scales: expected 0"),
        ("model.class_names=[a, a]", "each name may stand once"),
        ("model.anchors=[[1, 2]]", "multiple of 3"),
        ("preprocess.size_hw=[100, 96]", "multiple of 32"),
        ("augment.multi_scale={min_size: 128, max_size: 64, every: 1}", "max_size: expected at least"),
        ("loss.box=eiou", "loss.box: .*'mse'"),
        ("model.class_names=[a", "not valid YAML"),
    ],
)
def test_a_bad_value_is_named(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_config(ROOT / "configs/tiny.yaml", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  seed: 0\n", "", "train.seed: missing"),
        ("  momentum:", "  momentun:", "train.momentun: unknown key"),
        ("train:\n", "train: [\n", "not valid YAML"),
        ("  nesterov:", "  momentum: 0.5\n  nesterov:", "'momentum' stands twice"),
    ],
)
def test_a_damaged_file_is_explained(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (ROOT / "configs/tiny.yaml").read_text()
    assert old in text
    bad = tmp_path / "bad.yaml"
    bad.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        load_config(bad)


def test_no_file_and_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such config"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="expected a mapping"):
        load_config(tmp_path / "list.yaml")


def test_a_config_that_was_stored_before_a_field_existed_is_read() -> None:
    from detector.config import _ADDED_LATER, parse_config_text

    config = load_config(ROOT / "configs/tiny.yaml")
    tree = yaml.safe_load(to_yaml(config))
    for section, fields in _ADDED_LATER.items():
        for name in fields:
            del tree[section][name]
    assert parse_config_text(yaml.safe_dump(tree), "old.safetensors") == config


def test_a_run_from_before_a_field_existed_goes_on_with_its_config(trained_run: Path, tmp_path: Path) -> None:
    lines = (trained_run / "config.yaml").read_text().splitlines(keepends=True)
    old = [line for line in lines if not line.strip().startswith(("fusion:", "squeeze_excite:", "power:"))]
    assert len(old) == len(lines) - 3
    (tmp_path / "config.yaml").write_text("".join(old))
    with pytest.raises(InputError, match="missing; every field must stand in the file"):
        load_config(tmp_path / "config.yaml")
    (tmp_path / "last.safetensors").touch()
    assert load_config(tmp_path / "config.yaml") == load_config(trained_run / "config.yaml")
