"""Everything a user may set: frozen dataclasses filled from one complete YAML file, and the only reader of that file.

Every field must stand in the file, so the file alone says what an experiment is. `a.b=value` on the command line
replaces one field. An unknown key, a missing key, a wrong type or a value out of range is an `InputError` that names
the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from detector.errors import InputError, read_text

_T = TypeVar("_T")
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
AtLeastOne = Annotated[float, Field(ge=1)]
NetworkSize = Annotated[int, Field(ge=32, multiple_of=32)]
Activation = Literal["leaky", "relu", "relu6", "mish", "swish", "logistic", "linear"]


class _Strict:
    """Base of all sections: no unknown keys, no silent conversions ("4" is not a number)."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class BackboneConfig(_Strict):
    """The backbone; channel numbers follow from the parts' announcements.

    Attributes:
        backbone: a key of `detector.models.BACKBONES`.
        gamma: share of channels that bypasses the dense blocks (CSPPeleeNet); null for backbones without it.
        fusion: CSPPeleeNet's transitions: csp | first | last (the paper's Table 1); null for the others.
        activation: of every convolution but the last.
        squeeze_excite: channel weights in the dense layers (PeleeNet, CSPPeleeNet).
    """

    backbone: str
    gamma: Annotated[float, Field(gt=0, lt=1)] | None
    fusion: Literal["csp", "first", "last"] | None
    activation: Activation
    squeeze_excite: bool


@dataclass(frozen=True)
class ModelConfig(BackboneConfig):
    """A detector.

    Attributes:
        neck: a key of `detector.models.NECKS`.
        attention: where the neck applies SAM: none | sam.
        class_names: in the order of the class indices.
        anchors: (width, height) in pixels of the network input, smallest first, the same number for each scale.
        scale_xy: Darknet's scale_x_y, one per scale, 1 = plain sigmoid.
    """

    neck: str
    attention: Literal["none", "sam"]
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    anchors: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1)]
    scale_xy: Annotated[tuple[AtLeastOne, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class_names: each name may stand once, got {list(self.class_names)}")
        if len(self.anchors) % len(self.scale_xy):
            raise ValueError(
                f"anchors: expected a multiple of {len(self.scale_xy)} (one group for each entry of scale_xy), "
                f"got {len(self.anchors)}"
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def anchors_per_scale(self) -> int:
        return len(self.anchors) // len(self.scale_xy)


@dataclass(frozen=True)
class ClassifierConfig(BackboneConfig):
    """An image classifier: a backbone, the mean over all places, a linear layer.

    Attributes:
        num_classes: as many as the data set has.
    """

    num_classes: Count


@dataclass(frozen=True)
class DarknetModelConfig(_Strict):
    """A network that a Darknet cfg describes.

    Attributes:
        darknet_cfg: the text of the cfg; anchors and scales stand in its [yolo] sections.
        class_names: in the order of the class indices.
    """

    darknet_cfg: str
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def _kind_of_model(tree: Any) -> str:
    named = tree if isinstance(tree, dict) else vars(tree)
    return "darknet" if "darknet_cfg" in named else "native"


AnyModelConfig = Annotated[
    Annotated[ModelConfig, Tag("native")] | Annotated[DarknetModelConfig, Tag("darknet")], Discriminator(_kind_of_model)
]
StoredModel = ModelConfig | DarknetModelConfig | ClassifierConfig
"""What a weights file can hold."""


@dataclass(frozen=True)
class PreprocessConfig(_Strict):
    """How any image becomes the network's input.

    Attributes:
        size_hw: height and width of the network's input in pixels, multiples of 32.
        letterbox: keep the aspect and fill with grey; otherwise stretch, as AlexeyAB's Darknet does by default.
        align_corners: resize as Darknet's `resize_image`: corner pixels on corner pixels (for models from Darknet).
    """

    size_hw: tuple[NetworkSize, NetworkSize]
    letterbox: bool
    align_corners: bool = False


@dataclass(frozen=True)
class SyntheticConfig(_Strict):
    """The embedded data set, drawn into `data.root` before training when it is not there yet.

    Attributes:
        num_train: pictures in the split `train`.
        num_val: pictures in the split `val`.
        image_hw: their size in pixels.
        seed: of all that is drawn.
    """

    num_train: Count
    num_val: Count
    image_hw: tuple[Count, Count]
    seed: Natural


@dataclass(frozen=True)
class DataConfig(_Strict):
    """Where the images and labels are.

    Attributes:
        root: a COCO or VOC folder, a YOLO data.yaml or a Darknet .data file; relative to the working folder.
        train: split to train on (for COCO the annotation file below root).
        val: split to evaluate on.
        bad_labels: clip = mend what can be mended and drop the rest; drop = drop every bad object; fail = stop.
        cache_mb: decoded pictures that each loader process keeps; changes nothing but the speed.
        timeout_seconds: a batch that takes longer to read stops the run with a report; 0 = wait for ever.
        synthetic: draw the embedded data set into root; null = the data set is there.
    """

    root: str
    train: str
    val: str
    bad_labels: Literal["clip", "drop", "fail"]
    cache_mb: Natural
    timeout_seconds: Natural
    synthetic: SyntheticConfig | None


@dataclass(frozen=True)
class MultiScaleConfig(_Strict):
    """Training sizes: every `every` steps the long side is min_size..max_size in steps of 32 (Darknet `random=1`)."""

    min_size: NetworkSize
    max_size: NetworkSize
    every: Count

    def __post_init__(self) -> None:
        if self.max_size < self.min_size:
            raise ValueError(f"max_size: expected at least min_size {self.min_size}, got {self.max_size}")


@dataclass(frozen=True)
class AugmentConfig(_Strict):
    """Augmentation; every draw is a pure function of (seed, step, slot).

    Attributes:
        jitter: each image border moves by up to this share of the side, in or out (Darknet `jitter`).
        hue: largest hue shift, as a share of the colour circle.
        saturation: largest factor, its inverse the smallest.
        exposure: largest factor of the brightness, its inverse the smallest.
        horizontal_flip: probability.
        vertical_flip: probability.
        rotate90: probability of a turn by 90, 180 or 270 degrees.
        blur: probability of a slight Gaussian blur.
        noise: probability of slight Gaussian noise.
        mosaic: probability that four images make up one.
        multi_scale: random network sizes; null = always preprocess.size_hw.
    """

    jitter: Annotated[float, Field(ge=0, lt=0.5)]
    hue: Annotated[float, Field(ge=0, le=0.5)]
    saturation: AtLeastOne
    exposure: AtLeastOne
    horizontal_flip: Fraction
    vertical_flip: Fraction
    rotate90: Fraction
    blur: Fraction
    noise: Fraction
    mosaic: Fraction
    multi_scale: MultiScaleConfig | None


@dataclass(frozen=True)
class LossConfig(_Strict):
    """YOLOv3's loss and its later options; the names on the right are Darknet's.

    Attributes:
        box: mse | giou | diou | ciou (iou_loss).
        box_weight: iou_normalizer.
        objectness_weight: obj_normalizer.
        class_weight: cls_normalizer.
        ignore_threshold: background predictions that overlap an object more than this are not punished (ignore_thresh).
        match_threshold: besides the best anchor, every anchor with a size IoU above this answers too; 1 = best only
            (iou_thresh).
        label_smoothing: class targets e/2 and 1-e/2 (label_smooth_eps).
    """

    box: Literal["mse", "giou", "diou", "ciou"]
    box_weight: NonNegative
    objectness_weight: NonNegative
    class_weight: NonNegative
    ignore_threshold: Fraction
    match_threshold: Fraction
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class TrainConfig(_Strict):
    """The schedule.

    Attributes:
        seed: of the initial weights, the order of the images and the augmentation.
        max_steps: optimiser steps ("iterations").
        batch_size: images per step.
        subdivisions: parts that a batch is computed in, to save memory.
        learning_rate: after burn-in.
        burn_in: steps in which the rate grows as (step / burn_in)^4.
        policy: steps = times `scales[i]` from step `steps[i]` on; cosine = down to `final_scale` at the last step;
            poly = times (1 - step / max_steps)^power.
        steps: for policy steps.
        scales: for policy steps, as many as steps.
        final_scale: for policy cosine, share of the learning rate that is left at the end.
        power: for policy poly.
        momentum: of SGD.
        nesterov: Nesterov momentum.
        weight_decay: on convolution weights only.
        ema_decay: of the averaged weights that are evaluated and released; 0 = none.
        precision: fp32 | bf16 | auto (bf16 where the processor computes it natively).
        num_workers: processes that read and augment; changes nothing but the speed.
        sync_batchnorm: with several processes, normalise with the statistics of all their images.
        log_every: steps between two lines of metrics.jsonl.
        save_every: steps between two writes of last.safetensors.
    """

    seed: Natural
    max_steps: Count
    batch_size: Count
    subdivisions: Count
    learning_rate: Positive
    burn_in: Natural
    policy: Literal["steps", "cosine", "poly"]
    steps: tuple[Natural, ...]
    scales: tuple[Positive, ...]
    final_scale: Fraction
    power: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: NonNegative
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["auto", "fp32", "bf16"]
    num_workers: Natural
    sync_batchnorm: bool
    log_every: Count
    save_every: Count

    def __post_init__(self) -> None:
        if self.batch_size % self.subdivisions:
            raise ValueError(
                f"subdivisions: expected a divisor of batch_size {self.batch_size}, got {self.subdivisions}"
            )
        if len(self.steps) != len(self.scales):
            raise ValueError(f"scales: expected {len(self.steps)} (one for each of steps), got {len(self.scales)}")


@dataclass(frozen=True)
class EvaluateConfig(_Strict):
    """Evaluation during and after training.

    Attributes:
        every: steps between two evaluations; 0 = only after the last step.
        score_threshold: detections below are not counted (COCO practice: 0.001 or more).
        nms_threshold: of two boxes of one class with a larger IoU only the better one stays.
        max_detections: per image, the best (COCO: 100).
        metric: decides which checkpoint is the best one.
    """

    every: Natural
    score_threshold: Fraction
    nms_threshold: Fraction
    max_detections: Annotated[int, Field(ge=1, le=100)]
    metric: Literal["ap", "ap50"]


@dataclass(frozen=True)
class ExperimentConfig(_Strict):
    """One experiment, whole. `run_dir` null means weights/<name of the config file>."""

    model: AnyModelConfig
    preprocess: PreprocessConfig
    data: DataConfig
    augment: AugmentConfig
    loss: LossConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    run_dir: str | None


@dataclass(frozen=True)
class InputConfig(_Strict):
    """Attributes: size: side of the square that a classifier sees, in pixels, a multiple of 32."""

    size: NetworkSize


@dataclass(frozen=True)
class FolderDataConfig(_Strict):
    """Pictures in one folder for each class: <root>/<split>/<class>/*.jpg (torchvision's ImageFolder).

    Attributes:
        root: of the data set; relative to the working folder.
        train: split to train on.
        val: split to evaluate on.
        timeout_seconds: a batch that takes longer to read stops the run with a report; 0 = wait for ever.
    """

    root: str
    train: str
    val: str
    timeout_seconds: Natural


@dataclass(frozen=True)
class CropConfig(_Strict):
    """Darknet's augmentation for classifiers (`load_data_augment`); a pure function of (seed, step, slot).

    Attributes:
        min_crop: the shorter side becomes min_crop to max_crop pixels; a square of the network's size is cut out.
        max_crop: see min_crop.
        angle: turned by up to so many degrees.
        aspect: largest factor between the sides' scales, or its inverse.
        hue: largest hue shift, as a share of the colour circle.
        saturation: largest factor, its inverse the smallest.
        exposure: largest factor of the brightness, its inverse the smallest.
        horizontal_flip: probability.
        cutmix: probability that a rectangle of another picture covers a part of one, and of its label.
        mosaic: probability that four pictures make up one, and its label.
    """

    min_crop: Count
    max_crop: Count
    angle: Annotated[float, Field(ge=0, le=180)]
    aspect: Positive
    hue: Annotated[float, Field(ge=0, le=0.5)]
    saturation: Positive
    exposure: Positive
    horizontal_flip: Fraction
    cutmix: Fraction
    mosaic: Fraction

    def __post_init__(self) -> None:
        if self.max_crop < self.min_crop:
            raise ValueError(f"max_crop: expected at least min_crop {self.min_crop}, got {self.max_crop}")
        if self.cutmix + self.mosaic > 1:
            raise ValueError(f"mosaic: with cutmix {self.cutmix} at most {1 - self.cutmix:g}, got {self.mosaic}")


@dataclass(frozen=True)
class CrossEntropyConfig(_Strict):
    """Attributes: label_smoothing: the true class gets 1 - e, the others share e (label_smooth_eps)."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class ClassifierEvaluateConfig(_Strict):
    """Attributes: every: steps between two evaluations; 0 = only after the last step."""

    every: Natural


@dataclass(frozen=True)
class ClassifyConfig(_Strict):
    """One experiment with a classifier, whole (`task: classify`)."""

    task: Literal["classify"]
    model: ClassifierConfig
    input: InputConfig
    data: FolderDataConfig
    augment: CropConfig
    loss: CrossEntropyConfig
    train: TrainConfig
    evaluate: ClassifierEvaluateConfig
    run_dir: str | None

    @property
    def preprocess(self) -> PreprocessConfig:
        """As weights files store it."""
        return PreprocessConfig((self.input.size, self.input.size), letterbox=False)


RunConfig = ExperimentConfig | ClassifyConfig
"""What a training run can be."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number (YAML 1.2) and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
_ADDED_LATER: dict[str, dict[str, Any]] = {
    "data": {"cache_mb": 256, "timeout_seconds": 600},
    "train": {"sync_batchnorm": False, "power": 4.0},
}
"""What a stored config may lack, because it was written before the field existed."""
_EXPERIMENT = TypeAdapter(ExperimentConfig)
_CLASSIFY = TypeAdapter(ClassifyConfig)
_MODEL: TypeAdapter[ModelConfig | DarknetModelConfig] = TypeAdapter(AnyModelConfig)
_CLASSIFIER = TypeAdapter(ClassifierConfig)
_PREPROCESS = TypeAdapter(PreprocessConfig)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Reads an experiment with a detector.

    Args:
        path: a YAML file with every field of `ExperimentConfig`.
        overrides: `a.b=value`, the value in YAML.

    Raises:
        InputError: the file is missing, is no YAML, or a key is unknown, missing, of the wrong type or out of range;
            or it is a classifier's.
    """
    config = load_run_config(path, overrides)
    if isinstance(config, ClassifyConfig):
        raise InputError(f"{path}: is for a classifier (task: classify); a detector's config is needed here")
    return config


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """`load_config`, for a detector's or a classifier's experiment. Raises: InputError."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such config; the experiments that come with the project are in configs/")
    tree = _parse_yaml(read_text(path), str(path))
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of sections (model:, data:, ...), got {type(tree).__name__}")
    if path.name == "config.yaml" and (path.parent / "last.safetensors").is_file():
        tree = _with_later_fields(tree)  # of a run that may have begun before they existed
    _complete(tree, path, overrides)
    if "task" in tree:
        return _validated(_CLASSIFY, tree, str(path))
    return _validated(_EXPERIMENT, tree, str(path))


def finish_config(tree: dict[str, Any], path: Path, overrides: Sequence[str]) -> ExperimentConfig:
    """Overrides, default run_dir and checks for the tree of an experiment that came from `path`. Raises: InputError."""
    _complete(tree, path, overrides)
    return _validated(_EXPERIMENT, tree, str(path))


def _complete(tree: dict[str, Any], path: Path, overrides: Sequence[str]) -> None:
    for override in overrides:
        _apply_override(tree, override)
    if tree.get("run_dir", "") is None:
        tree["run_dir"] = f"weights/{path.stem}"


def to_yaml(config: RunConfig) -> str:
    """The complete, resolved config as text that `load_config` reads back to an equal value."""
    return str(yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False, allow_unicode=True))


def parse_experiment_text(text: str, where: str) -> ExperimentConfig:
    """An experiment that was stored as text by `to_yaml` (in a weights file `where`). Raises: InputError."""
    return _validated(_EXPERIMENT, _with_later_fields(_parse_yaml(text, where)), where)


def _with_later_fields(tree: Any) -> Any:
    """A stored experiment with the fields that it was written before."""
    if not isinstance(tree, dict):
        return tree
    added = {
        section: {**fields, **tree[section]}
        for section, fields in _ADDED_LATER.items()
        if isinstance(tree.get(section), dict) and "task" not in tree
    }
    if isinstance(tree.get("model"), dict):
        added["model"] = _with_later_options(tree["model"])
    return {**tree, **added}


def _with_later_options(model: dict[str, Any]) -> dict[str, Any]:
    """A stored model section with the options of the backbone that it was written before."""
    if "backbone" not in model:
        return model
    fusion = "csp" if model["backbone"] == "csppeleenet" else None
    return {"fusion": fusion, "squeeze_excite": False, **model}


def parse_classify_text(text: str, where: str) -> ClassifyConfig:
    """A classifier's experiment that `to_yaml` made text of, for a weights file `where`. Raises: InputError."""
    return _validated(_CLASSIFY, _parse_yaml(text, where), where)


def parse_model_config(tree: dict[str, Any], where: str) -> StoredModel:
    """A model section that was stored elsewhere (in a weights file `where`). Raises: InputError."""
    if "num_classes" in tree:
        return _validated(_CLASSIFIER, tree, where)
    return _validated(_MODEL, _with_later_options(tree), where)


def parse_preprocess_config(tree: dict[str, Any], where: str) -> PreprocessConfig:
    """A preprocess section that was stored elsewhere (in a weights file `where`). Raises: InputError."""
    return _validated(_PREPROCESS, tree, where)


def read_yaml(path: Path) -> Any:
    """Any other YAML file (a data set's data.yaml). Raises: InputError."""
    return _parse_yaml(read_text(path), str(path))


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise InputError(f"override {override!r}: expected a.b=value, for example train.max_steps=1000")
    *parents, leaf = key.split(".")
    section: Any = tree
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise InputError(f"override {override!r}: there is no section {'.'.join(parents)!r}")
    if leaf not in section:
        raise InputError(f"override {override!r}: unknown key {key!r}; expected one of {', '.join(section)}")
    section[leaf] = _parse_yaml(text, f"override {override!r}")


def _validated(adapter: TypeAdapter[_T], tree: Any, where: str) -> _T:
    try:
        return adapter.validate_json(json.dumps(tree))
    except ValidationError as error:
        raise InputError(f"{where}: {'; '.join(_explain(item) for item in error.errors())}") from error
    except TypeError as error:
        raise InputError(f"{where}: {error}") from error


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"] if part not in {"native", "darknet"})
    if item["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        return f"{key}: unknown key (misspelt?)"
    if item["type"] in {"missing", "missing_argument"}:
        return f"{key}: missing; every field must stand in the file"
    message = item["msg"].removeprefix("Value error, ")
    if isinstance(item["input"], dict):  # a section, whose message says what was given
        return f"{key}: {message}"
    return f"{key}: {message}, got {item['input']!r}"[:400]
