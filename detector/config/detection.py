"""The fields of a detector's experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from detector.config.shared import (
    Activation,
    AtLeastOne,
    BackboneConfig,
    BelowOne,
    Count,
    Fraction,
    Natural,
    NetworkSize,
    NonNegative,
    Positive,
    PreprocessConfig,
    Section,
    TrainConfig,
    by_name,
)


@dataclass(frozen=True)
class ExactFusionConfig(Section):
    """The Exact Fusion Model.

    Attributes:
        attention: none | sam (spatial attention).
        width: factor of all numbers of channels; 1 is the paper's.
    """

    name: Literal["efm"]
    attention: Literal["none", "sam"] = "none"
    width: Annotated[float, Field(ge=0.25, le=2)] = 1.0


@dataclass(frozen=True)
class ContextConfig(Section):
    """The Context Enhancement Module. Attributes: attention: none | sam (spatial attention)."""

    name: Literal["cem"]
    attention: Literal["none", "sam"] = "none"


@dataclass(frozen=True)
class PlainNeckConfig(Section):
    """A neck without options. Attributes: name: a key of `detector.models.build.NECKS`."""

    name: str


NeckConfig = Annotated[
    Annotated[ExactFusionConfig, Tag("kind:efm")]
    | Annotated[ContextConfig, Tag("kind:cem")]
    | Annotated[PlainNeckConfig, Tag("kind:plain")],
    Discriminator(by_name({"efm": "kind:efm", "cem": "kind:cem"})),
]


@dataclass(frozen=True)
class ModelConfig(Section):
    """A detector; its channel counts follow from its parts.

    Attributes:
        backbone: its name and its options.
        neck: its name and its options.
        class_names: in the order of the class indices.
        anchors: (width, height) in pixels of the network input, smallest first, the same number for each scale.
        activation: of every convolution but the last.
    """

    backbone: BackboneConfig
    neck: NeckConfig
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    anchors: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1)]
    activation: Activation = "leaky"

    def __post_init__(self) -> None:
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class_names: expected different names, got {list(self.class_names)}")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class DarknetModelConfig(Section):
    """A network that a Darknet cfg describes.

    Attributes:
        darknet_cfg: the text of the cfg; anchors and scales are in its [yolo] sections.
        class_names: in the order of the class indices.
    """

    darknet_cfg: str
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def _kind_of_model(tree: Any) -> str:
    is_darknet = "darknet_cfg" in tree if isinstance(tree, dict) else isinstance(tree, DarknetModelConfig)
    return "kind:darknet" if is_darknet else "kind:native"


DetectorModelConfig = Annotated[
    Annotated[ModelConfig, Tag("kind:native")] | Annotated[DarknetModelConfig, Tag("kind:darknet")],
    Discriminator(_kind_of_model),
]


@dataclass(frozen=True)
class SyntheticConfig(Section):
    """The synthetic data set, drawn into `data.root` before training if it does not exist yet.

    Attributes:
        num_train: images in the split `train`.
        num_val: images in the split `val`.
        image_hw: their size in pixels.
    """

    num_train: Count
    num_val: Count
    image_hw: tuple[Count, Count]


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the images and labels are.

    Attributes:
        root: a COCO or VOC folder, a YOLO data.yaml or a Darknet .data file; relative to the working folder.
        train: split to train on (for COCO the annotation file below root).
        val: split to evaluate on.
        bad_labels: clip = fix what can be fixed and drop the rest; drop = drop every bad object; fail = stop.
        cache_mb: decoded images that each loader process keeps; changes only the speed.
        timeout_seconds: a batch that takes longer to read stops the run and names the file; 0, or without loader
            processes: wait forever.
        synthetic: draw the synthetic data set into root; null = the data set exists already.
    """

    root: str
    train: str = "train"
    val: str = "val"
    bad_labels: Literal["clip", "drop", "fail"] = "clip"
    cache_mb: Natural = 256
    timeout_seconds: Natural = 600
    synthetic: SyntheticConfig | None = None


@dataclass(frozen=True)
class MultiScaleConfig(Section):
    """Training sizes: every `every` steps the long side is min_size..max_size in steps of 32 (Darknet `random=1`)."""

    min_size: NetworkSize
    max_size: NetworkSize
    every: Count = 10

    def __post_init__(self) -> None:
        if self.max_size < self.min_size:
            raise ValueError(f"max_size: expected at least min_size {self.min_size}, got {self.max_size}")


@dataclass(frozen=True)
class ProgressiveConfig(Section):
    """Small images first: the network's size grows evenly to `preprocess.size_hw`, so that a given time has more steps.

    Attributes:
        start: sides at the first step, as a share of the full ones.
        until: share of the steps after which the size is the full one.
    """

    start: Annotated[float, Field(gt=0, le=1)] = 0.5
    until: Annotated[float, Field(gt=0, le=1)] = 0.7


@dataclass(frozen=True)
class AugmentConfig(Section):
    """Augmentation; every draw is a pure function of (seed, step, slot).

    Attributes:
        jitter: each image border moves by up to this share of the side, in or out (Darknet `jitter`).
        hue: largest hue shift, as a share of the colour circle.
        saturation: largest factor, its inverse the smallest.
        exposure: largest factor of the brightness, its inverse the smallest.
        horizontal_flip: probability.
        vertical_flip: probability.
        rotate90: probability of a rotation by 90, 180 or 270 degrees.
        blur: probability of a slight Gaussian blur.
        noise: probability of slight Gaussian noise.
        mosaic: probability that four images are combined into one.
        multi_scale: random network sizes; null = always preprocess.size_hw.
        progressive: network sizes that grow during the training, instead of random ones.
    """

    jitter: Annotated[float, Field(ge=0, lt=0.5)] = 0.3
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    saturation: AtLeastOne = 1.5
    exposure: AtLeastOne = 1.5
    horizontal_flip: Fraction = 0.5
    vertical_flip: Fraction = 0.0
    rotate90: Fraction = 0.0
    blur: Fraction = 0.0
    noise: Fraction = 0.0
    mosaic: Fraction = 0.0
    multi_scale: MultiScaleConfig | None = None
    progressive: ProgressiveConfig | None = None

    def __post_init__(self) -> None:
        if self.multi_scale is not None and self.progressive is not None:
            raise ValueError("progressive: cannot be combined with multi_scale; set one of them to null")


@dataclass(frozen=True)
class LossConfig(Section):
    """YOLOv3's loss and its later options; the names on the right are Darknet's.

    Attributes:
        box: mse | giou | diou | ciou (iou_loss).
        box_weight: iou_normalizer.
        objectness_weight: obj_normalizer.
        class_weight: cls_normalizer.
        ignore_threshold: background predictions with a larger IoU with an object are not penalised (ignore_thresh).
        match_threshold: besides the best anchor, every anchor with a size IoU above this matches too; 1 = best only
            (iou_thresh).
        label_smoothing: class targets e/2 and 1-e/2 (label_smooth_eps).
    """

    box: Literal["mse", "giou", "diou", "ciou"] = "mse"
    box_weight: NonNegative = 1.0
    objectness_weight: NonNegative = 1.0
    class_weight: NonNegative = 1.0
    ignore_threshold: Fraction = 0.7
    match_threshold: Fraction = 1.0
    label_smoothing: BelowOne = 0.0


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """Evaluation during and after training.

    Attributes:
        every: steps between two evaluations; 0 = only after the last step.
        score_threshold: detections at or below it are not counted (COCO practice: 0.001 or more).
        nms_threshold: of two boxes of one class with a larger IoU, only the better one is kept.
        metric: decides which checkpoint is the best one.
    """

    every: Natural = 0
    score_threshold: Fraction = 0.001
    nms_threshold: Fraction = 0.45
    metric: Literal["ap", "ap50"] = "ap50"


@dataclass(frozen=True)
class DetectConfig(Section):
    """A detector's experiment. `run_dir` null means weights/<name of the config file>."""

    model: DetectorModelConfig
    data: DataConfig
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    run_dir: str | None = None
