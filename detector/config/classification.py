"""The fields of a classifier's experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from detector.config.shared import (
    Activation,
    BackboneConfig,
    BelowOne,
    Count,
    Fraction,
    Natural,
    NetworkSize,
    Positive,
    PreprocessConfig,
    Section,
    TrainConfig,
)


@dataclass(frozen=True)
class ClassifierConfig(Section):
    """An image classifier: a backbone, global average pooling, a linear layer.

    Attributes:
        backbone: its name and its options.
        num_classes: number of classes in the data set.
        activation: of every convolution but the last.
    """

    backbone: BackboneConfig
    num_classes: Count
    activation: Activation = "leaky"


@dataclass(frozen=True)
class InputConfig(Section):
    """Attributes: size: side of the square that a classifier sees, in pixels, a multiple of 32."""

    size: NetworkSize = 224


@dataclass(frozen=True)
class FolderDataConfig(Section):
    """One folder of images for each class: <root>/<split>/<class>/*.jpg (torchvision's ImageFolder).

    Attributes:
        root: the data set's folder, relative to the working folder.
        train: split to train on.
        val: split to evaluate on.
        timeout_seconds: see `DataConfig`.
    """

    root: str
    train: str = "train"
    val: str = "val"
    timeout_seconds: Natural = 600


@dataclass(frozen=True)
class CropConfig(Section):
    """Darknet's augmentation for classifiers (`load_data_augment`); a pure function of (seed, step, slot).

    Attributes:
        min_crop: the shorter side becomes min_crop to max_crop pixels; a square of the network's size is cut out.
        max_crop: see min_crop.
        angle: largest rotation in degrees.
        aspect: largest factor between the sides' scales, or its inverse.
        hue: largest hue shift, as a share of the colour circle.
        saturation: largest factor, its inverse the smallest.
        exposure: largest factor of the brightness, its inverse the smallest.
        horizontal_flip: probability.
        cutmix: probability that a rectangle of another image replaces a part of the image and of its label.
        mosaic: probability that four images and their labels are combined into one.
    """

    min_crop: Count = 128
    max_crop: Count = 448
    angle: Annotated[float, Field(ge=0, le=180)] = 7.0
    aspect: Positive = 0.75
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    saturation: Positive = 0.75
    exposure: Positive = 0.75
    horizontal_flip: Fraction = 0.5
    cutmix: Fraction = 0.0
    mosaic: Fraction = 0.0

    def __post_init__(self) -> None:
        if self.max_crop < self.min_crop:
            raise ValueError(f"max_crop: expected at least min_crop {self.min_crop}, got {self.max_crop}")
        if self.cutmix + self.mosaic > 1:
            raise ValueError(f"mosaic: expected at most 1 - cutmix = {1 - self.cutmix:g}, got {self.mosaic}")


@dataclass(frozen=True)
class CrossEntropyConfig(Section):
    """Attributes: label_smoothing: the true class gets 1 - e, the others share e (label_smooth_eps)."""

    label_smoothing: BelowOne = 0.0


@dataclass(frozen=True)
class ClassifierEvaluateConfig(Section):
    """Attributes: every: steps between two evaluations; 0 = only after the last step."""

    every: Natural = 0


@dataclass(frozen=True)
class ClassifyConfig(Section):
    """A classifier's experiment (`task: classify`). `run_dir` null means weights/<name of the config file>."""

    task: Literal["classify"]
    model: ClassifierConfig
    data: FolderDataConfig
    input: InputConfig = field(default_factory=InputConfig)
    augment: CropConfig = field(default_factory=CropConfig)
    loss: CrossEntropyConfig = field(default_factory=CrossEntropyConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: ClassifierEvaluateConfig = field(default_factory=ClassifierEvaluateConfig)
    run_dir: str | None = None

    @property
    def preprocess(self) -> PreprocessConfig:
        """The preprocessing, as weights files store it."""
        return PreprocessConfig((self.input.size, self.input.size))
