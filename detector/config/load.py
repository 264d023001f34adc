"""YAML files and `a.b=value` overrides -> configs: the only reader of YAML.

A file states what differs from the defaults, or from the file that it names as `base:`. A later value replaces an
earlier one; sections are merged key by key. A section with a `name` that gets another name is replaced as a whole,
since the old options do not apply to the new choice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from detector.config.classification import ClassifierConfig, ClassifyConfig
from detector.config.detection import DarknetModelConfig, DetectConfig, DetectorModelConfig, ModelConfig
from detector.config.shared import PreprocessConfig, Section
from detector.errors import InputError
from detector.files import read_text

_T = TypeVar("_T")
RunConfig = DetectConfig | ClassifyConfig
"""What a training run can be."""
StoredModel = ModelConfig | DarknetModelConfig | ClassifierConfig
"""What a weights file can hold."""


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader without aliases, with which a small file can grow to gigabytes, and without duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"the alias *{event.anchor} is not supported; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else str(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} appears twice", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Loader(_PlainLoader):
    """Reads 1e-3 as a number (YAML 1.2)."""


class _TextLoader(_PlainLoader):
    """Reads every value as text: yes, 007, null and 12:30 can be names."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (as in its base class)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
_NOT_FROM_DATA = ("train.precision", "train.subdivisions")
"""Keys whose `auto` the machine decides."""
_DETECT = TypeAdapter(DetectConfig)
_CLASSIFY = TypeAdapter(ClassifyConfig)
_DETECTOR_MODEL: TypeAdapter[ModelConfig | DarknetModelConfig] = TypeAdapter(DetectorModelConfig)
_CLASSIFIER_MODEL = TypeAdapter(ClassifierConfig)
_PREPROCESS = TypeAdapter(PreprocessConfig)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> DetectConfig:
    """Reads a detector's experiment.

    Args:
        path: a YAML file with fields of `DetectConfig`.
        overrides: `a.b=value`, the value in YAML.

    Raises:
        InputError: the file or its base is missing or is not YAML; a key is unknown, missing, of the wrong type or out
            of range; or the experiment is a classifier's.
    """
    config = load_run_config(path, overrides)
    if isinstance(config, ClassifyConfig):
        raise InputError(f"{path}: is for a classifier (task: classify); expected a detector's config")
    return config


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """`load_config`, for a detector's or a classifier's experiment. Raises: InputError."""
    return build_config(_read_with_bases(Path(path)), Path(path), overrides)


def read_tree(path: str | Path) -> dict[str, Any]:
    """The values of a YAML file and its bases, not yet checked. Raises: InputError."""
    return _read_with_bases(Path(path))


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The tree with `a.b=value` replaced. Raises: InputError."""
    for override in overrides:
        tree = _merge(tree, _parse_override(override))
    return tree


def leaves_to_data(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """The keys that are `auto` because the data decide them, such as model.anchors."""
    found = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += leaves_to_data(value, f"{prefix}{key}.")
        elif value == "auto" and prefix + key not in _NOT_FROM_DATA:
            found.append(prefix + key)
    return found


def build_config(tree: dict[str, Any], path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a tree read from `path`, with overrides and the default run_dir. Raises: InputError."""
    tree = apply_overrides(tree, overrides)
    open_keys = leaves_to_data(tree)
    if open_keys:
        raise InputError(f"{path}: leaves {', '.join(open_keys)} to the data; add --data PATH")
    if tree.get("run_dir") is None:
        tree = {**tree, "run_dir": f"weights/{path.stem}"}
    return _validate_run(tree, " ".join([str(path), *overrides]))


def parse_config_text(text: str, where: str) -> RunConfig:
    """Parses a config that `to_yaml` wrote and that the weights file `where` stores. Raises: InputError."""
    return _validate_run(_parse_yaml(text, where), where)


def to_yaml(config: RunConfig) -> str:
    """The complete, resolved config as text that `load_config` reads back to an equal value."""
    return str(yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False, allow_unicode=True))


def parse_model_config(tree: dict[str, Any], where: str) -> StoredModel:
    """Parses a model section that the weights file `where` stores. Raises: InputError."""
    if "num_classes" in tree:
        return _validate(_CLASSIFIER_MODEL, tree, where)
    return _validate(_DETECTOR_MODEL, tree, where)


def parse_preprocess_config(tree: dict[str, Any], where: str) -> PreprocessConfig:
    """Parses a preprocess section that the weights file `where` stores. Raises: InputError."""
    return _validate(_PREPROCESS, tree, where)


def read_yaml(path: Path) -> Any:
    """Reads any other YAML file. Raises: InputError."""
    return _parse_yaml(read_text(path), str(path))


def read_texts(path: Path) -> Any:
    """Reads a YAML file in which every value is text, such as a data set's data.yaml. Raises: InputError."""
    return _parse_yaml(read_text(path), str(path), _TextLoader)


def _read_with_bases(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tree of a file, merged into that of its base."""
    shown = " -> ".join(map(str, (*chain, path)))
    if path.resolve() in [one.resolve() for one in chain]:
        raise InputError(f"{shown}: the base files form a cycle; remove one `base:`")
    if not path.is_file():
        hint = "check its `base:`" if chain else "the configs that come with the project are in configs/"
        raise InputError(f"{shown}: no such config; {hint}")
    tree = _parse_yaml(read_text(path), shown)
    if not isinstance(tree, dict):
        raise InputError(f"{shown}: expected a mapping of sections (model:, data:, ...), got {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise InputError(f"{shown}: base: expected the path of one file, got {base!r}")
    inherited = _read_with_bases(path.parent / base, (*chain, path))
    inherited.pop("run_dir", None)  # every config has a run of its own
    return _merge(inherited, tree)


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with the values of `new`; the module docstring states the rule."""
    merged = dict(old)
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            other_choice = "name" in value and value["name"] != before.get("name")
            merged[key] = value if other_choice else _merge(before, value)
        else:
            merged[key] = value
    return merged


def _parse_override(override: str) -> dict[str, Any]:
    """`a.b=value` -> {"a": {"b": value}}."""
    key, separator, text = override.partition("=")
    if not separator:
        raise InputError(f"override {override!r}: expected a.b=value, for example train.max_steps=1000")
    is_plain = text.strip()[:1] not in {"[", "{", '"', "'"}  # in YAML, " #" would start a comment
    tree: Any = text if is_plain and " #" in text else _parse_yaml(text, f"override {override!r}")
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return dict(tree)


def _parse_yaml(text: str, where: str, loader: type[_PlainLoader] = _Loader) -> Any:
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def _validate_run(tree: Any, where: str) -> RunConfig:
    if isinstance(tree, dict) and "task" in tree:
        return _validate(_CLASSIFY, tree, where)
    return _validate(_DETECT, tree, where)


def _validate(adapter: TypeAdapter[_T], tree: Any, where: str) -> _T:
    try:
        return adapter.validate_json(json.dumps(tree))
    except ValidationError as error:
        raise InputError(f"{where}: {'; '.join(_explain(item) for item in error.errors())}") from error
    except TypeError as error:
        raise InputError(f"{where}: {error}") from error


def _explain(item: Any) -> str:
    """One line for one of pydantic's errors."""
    parts = [str(part) for part in item["loc"] if not str(part).startswith("kind:")]
    choice = parts[2] if parts[:2] == ["train", "policy"] and len(parts) > 2 else ""
    if choice:
        del parts[2]  # the tag of pydantic's own discriminator
    key, given = ".".join(parts), item["input"]
    if item["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        return f"{key}: unknown key{_hint(parts)}"
    if item["type"] in {"missing", "missing_argument"}:
        return f"{key}: missing; it has no default"
    if parts and parts[-1] in _CHOICES and (item["type"].startswith("union_tag") or not isinstance(given, dict)):
        example = _CHOICES[parts[-1]]
        if isinstance(given, str):
            return f"{key}: expected a section with a name, got {given!r}; write {key}.name={given}"
        return (
            f"{key}: expected a section with a name, such as {{name: {example}}} (see configs/README.md), got {given!r}"
        )
    message = item["msg"].removeprefix("Value error, ")
    if isinstance(given, dict):  # a section, whose message says what was given
        return f"{key}: {message}"
    return f"{key}: {message}, got {given!r}"[:400]


_CHOICES = {"backbone": "csppeleenet", "neck": "efm", "policy": "cosine"}
"""The sections that are chosen by name, with an example of each."""


def _hint(parts: Sequence[str]) -> str:
    """What may be meant by an unknown key."""
    if len(parts) > 1 and parts[-2] in _CHOICES:
        return f"; it is not an option of this {parts[-2]}, see configs/README.md"
    close = [name for name in get_close_matches(parts[-1], _all_keys(), n=3, cutoff=0.75) if name != parts[-1]]
    return f"; did you mean {close[0]}?" if close else ""


def _all_keys() -> list[str]:
    return sorted({name for section in Section.__subclasses__() for name in section.__dataclass_fields__})  # type: ignore[attr-defined]
