"""The experiment file: typed, with bases and overrides, and every error names its key."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from detector.config import load_config, load_run_config, to_yaml
from detector.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
LEFT_TO_DATA = {"base.yaml", "detector.yaml", "detector_fast.yaml"}
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.name not in LEFT_TO_DATA)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_run_config(path)
    assert config.run_dir == f"weights/{path.stem}"
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config))
    assert load_run_config(copy) == config
    assert path.read_text().startswith("# "), "the header (command, time, result) is missing"


def test_every_run_has_its_own_folder() -> None:
    assert len({path.stem for path in CONFIGS}) == len(CONFIGS)


def test_paper_detectors_differ_only_in_network_input_size_and_box_loss() -> None:
    first = load_config(ROOT / "configs/csppelee_efm.yaml")
    for path in CONFIGS:
        if path.parent.name != "coco":
            continue
        config = load_config(path)
        for section in ("data", "augment", "train", "evaluate"):
            assert getattr(config, section) == getattr(first, section), path
        assert replace(config.loss, box=first.loss.box, box_weight=first.loss.box_weight) == first.loss, path
        assert config.model.class_names == first.model.class_names, path


def test_a_classifier_config_is_not_accepted_as_a_detector_config() -> None:
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
        ("train.lr=1", "train.lr: unknown key"),
        ("train.max_step=1", "train.max_step: unknown key; did you mean max_steps"),
        ("train.max_steps", "expected a.b=value"),
        ("train.max_steps=soon", "train.max_steps: .*valid integer, got 'soon'"),
        ("train.max_steps='4'", "train.max_steps: .*valid integer"),
        ("train.max_steps=0", "train.max_steps: .*greater than or equal to 1, got 0"),
        ("train.subdivisions=3", "subdivisions: expected a divisor of batch_size"),
        ("train.policy={name: steps, scales: [1.0]}", "train.policy: scales: expected 0"),
        ("train.policy.name=linear", "train.policy: expected a section with a name, such as {name: cosine}"),
        ("train.policy=cosine", "got 'cosine'; write train.policy.name=cosine"),
        ("model.backbone=peleenet", "got 'peleenet'; write model.backbone.name=peleenet"),
        ("model.backbone.gamma=2", "model.backbone.gamma: .*less than 1, got 2"),
        (
            "model.neck={name: gfm, attention: sam}",
            "model.neck.attention: unknown key; it is not an option of this neck",
        ),
        ("evaluate.max_detections=5", "evaluate.max_detections: unknown key$"),
        ("train.policy.power=2", "train.policy.power: unknown key; it is not an option of this policy"),
        ("nothing.here=1", "nothing: unknown key"),
        ("model.class_names=[a, a]", "expected different names"),
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
        ("data: {root: data/tiny, ", "data: {", "data.root: missing; it has no default"),
        ("  nesterov:", "  nesterof:", "train.nesterof: unknown key; did you mean nesterov"),
        ("train:\n", "train: [\n", "not valid YAML"),
        ("  nesterov:", "  burn_in: 5\n  nesterov:", "'burn_in' appears twice"),
    ],
)
def test_a_damaged_file_is_explained(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (ROOT / "configs/tiny.yaml").read_text()
    assert old in text
    bad = tmp_path / "bad.yaml"
    bad.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        load_config(bad)


def test_a_missing_file_and_a_file_without_a_mapping(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such config"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="expected a mapping"):
        load_config(tmp_path / "list.yaml")


def test_a_base_is_merged_key_by_key_but_another_choice_replaces_the_whole_section(tmp_path: Path) -> None:
    (tmp_path / "middle.yaml").write_text(
        f"base: {ROOT / 'configs/tiny.yaml'}\nmodel: {{neck: {{name: prn_3l}}}}\ntrain: {{seed: 7}}\nrun_dir: /x\n"
    )
    (tmp_path / "top.yaml").write_text("base: middle.yaml\ntrain: {policy: {final_scale: 0.5}}\n")
    tiny, top = load_config(ROOT / "configs/tiny.yaml"), load_config(tmp_path / "top.yaml")
    assert top.train == replace(tiny.train, seed=7, policy=replace(tiny.train.policy, final_scale=0.5))
    assert asdict(top.model.neck) == {"name": "prn_3l"}, "no attention without efm"  # type: ignore[union-attr]
    assert top.run_dir == "weights/top"
    other = load_config(tmp_path / "top.yaml", ["train.policy.name=poly", "train.policy.power=2"])
    assert asdict(other.train.policy) == {"name": "poly", "power": 2.0}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "base: b.yaml", "b": "base: c.yaml", "c": "base: a.yaml"}, "a.yaml -> .*b.yaml -> .*c.yaml -> .*a.yaml"),
        ({"a": "base: a.yaml"}, "form a cycle"),
        ({"a": "base: b.yaml", "b": "base: none.yaml"}, "a.yaml -> .*b.yaml -> .*none.yaml: no such config; check"),
        ({"a": "base: [b.yaml]"}, "base: expected the path of one file"),
    ],
)
def test_a_wrong_base_names_the_chain(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "a.yaml")


def test_the_recipes_of_the_paper_are_unchanged() -> None:
    """Every value of every config, bases and defaults included; a changed recipe changes the hash."""
    ours = {"quickstart.yaml", "tiny.yaml", "classify_tiny.yaml", "csppelee_efm_bccd.yaml"}
    values = {
        str(path.relative_to(ROOT)): asdict(load_run_config(path))
        for path in CONFIGS
        if path.name not in ours and path.parent.name != "timm"
    }
    assert len(values) == 74
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    assert digest == "e5a22ffc21f2e533efd76a6b1bb095bbb1880174091173447506627620802bf2"
