"""What detectors and classifiers have in common: the backbone, the input, the training schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Parts = Annotated[Natural, BeforeValidator(lambda value: 0 if value == "auto" else value)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
AtLeastOne = Annotated[float, Field(ge=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
NetworkSize = Annotated[int, Field(ge=32, multiple_of=32)]
Activation = Literal["leaky", "leaky_001", "relu", "relu6", "mish", "swish", "logistic", "linear"]


class Section:
    """Base of all sections: unknown keys are errors, and values are not converted ("4" is not a number)."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


def by_name(kinds: Mapping[str, str]) -> Callable[[Any], str | None]:
    """A discriminator that chooses a section's dataclass from its `name`.

    Args:
        kinds: the tag of each name that has its own options, or of all names below "prefix/"; others have the tag
            `kind:plain`.
    """

    def kind(tree: Any) -> str | None:
        name = tree.get("name") if isinstance(tree, dict) else getattr(tree, "name", None)
        if not isinstance(name, str):
            return None
        prefix, slash, _ = name.partition("/")
        return kinds.get(prefix + slash, "kind:plain")

    return kind


@dataclass(frozen=True)
class CSPPeleeNetConfig(Section):
    """CSPPeleeNet.

    Attributes:
        gamma: share of the channels that bypasses the dense blocks.
        fusion: transitions as in the paper's Table 1: csp | first | last.
        squeeze_excite: weigh the channels of the dense layers.
        width: factor of all numbers of channels; 1 is the paper's.
    """

    name: Literal["csppeleenet"]
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.5
    fusion: Literal["csp", "first", "last"] = "csp"
    squeeze_excite: bool = False
    width: Annotated[float, Field(ge=0.25, le=2)] = 1.0


@dataclass(frozen=True)
class PeleeNetConfig(Section):
    """PeleeNet and its variants. Attributes: squeeze_excite: weigh the channels of the dense layers."""

    name: Literal["peleenet", "sparsepeleenet", "peleenext"]
    squeeze_excite: bool = False


@dataclass(frozen=True)
class CSPDarknet53Config(Section):
    """CSPDarknet53. Attributes: standardize: normalise images as ImageNet's, which timm's published weights need."""

    name: Literal["cspdarknet53"]
    standardize: bool = False


@dataclass(frozen=True)
class TimmBackboneConfig(Section):
    """A network of the timm library.

    Attributes:
        name: timm/NAME.
        pretrained: start a new training from timm's published weights, fetched by `tools/download.py timm/NAME`.
        file: the same from this file, a classifier's model.safetensors as timm publishes it.
    """

    name: Annotated[str, Field(pattern="^timm/.")]
    pretrained: bool = False
    file: str | None = None


@dataclass(frozen=True)
class PlainBackboneConfig(Section):
    """A backbone without options. Attributes: name: a key of `detector.models.build.BACKBONES`."""

    name: str


BackboneConfig = Annotated[
    Annotated[CSPPeleeNetConfig, Tag("kind:csppeleenet")]
    | Annotated[PeleeNetConfig, Tag("kind:peleenet")]
    | Annotated[CSPDarknet53Config, Tag("kind:cspdarknet53")]
    | Annotated[TimmBackboneConfig, Tag("kind:timm")]
    | Annotated[PlainBackboneConfig, Tag("kind:plain")],
    Discriminator(
        by_name(
            {
                "csppeleenet": "kind:csppeleenet",
                "peleenet": "kind:peleenet",
                "sparsepeleenet": "kind:peleenet",
                "peleenext": "kind:peleenet",
                "cspdarknet53": "kind:cspdarknet53",
                "timm/": "kind:timm",
            }
        )
    ),
]


@dataclass(frozen=True)
class PreprocessConfig(Section):
    """How any image becomes the network's input.

    Attributes:
        size_hw: height and width of the network's input in pixels, multiples of 32.
        letterbox: keep the aspect ratio and pad with grey; otherwise stretch, as AlexeyAB's Darknet does by default.
        align_corners: resize as Darknet's `resize_image`: corner pixels map to corner pixels (for Darknet models).
    """

    size_hw: tuple[NetworkSize, NetworkSize] = (416, 416)
    letterbox: bool = False
    align_corners: bool = False


@dataclass(frozen=True)
class SGDConfig(Section):
    """Stochastic gradient descent with momentum, as Darknet's."""

    name: Literal["sgd"] = "sgd"


@dataclass(frozen=True)
class MuonConfig(Section):
    """Muon for the kernels of convolutions, SGD for the rest (`detector/train/muon.py`).

    `train.nesterov` and `train.weight_decay` are SGD's alone: Muon is always in Nesterov's form, without decay.

    Attributes:
        rate: the kernels' learning rate where the schedule is highest; `train.learning_rate` is that of the rest.
    """

    name: Literal["muon"]
    rate: Positive = 0.05


OptimizerConfig = Annotated[SGDConfig | MuonConfig, Field(discriminator="name")]


@dataclass(frozen=True)
class StepsPolicy(Section):
    """The rate is multiplied by `scales[i]` from step `steps[i]` on; without steps it is constant."""

    name: Literal["steps"] = "steps"
    steps: tuple[Natural, ...] = ()
    scales: tuple[Positive, ...] = ()

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.scales):
            raise ValueError(f"scales: expected {len(self.steps)} (one for each of steps), got {len(self.scales)}")


@dataclass(frozen=True)
class CosinePolicy(Section):
    """The rate falls along a cosine to `final_scale` times itself at the last step."""

    name: Literal["cosine"]
    final_scale: Fraction = 0.0


@dataclass(frozen=True)
class PolyPolicy(Section):
    """The rate is multiplied by (1 - step / max_steps)^power."""

    name: Literal["poly"]
    power: Positive = 4.0


@dataclass(frozen=True)
class TrainConfig(Section):
    """The schedule.

    Attributes:
        seed: seed of the initial weights, the order of the images and the augmentation.
        max_steps: optimiser steps ("iterations").
        batch_size: images per step.
        subdivisions: parts that a batch is split into, to save memory; auto (stored as 0) = the fewest that fit, see
            `train.parts`. Each part is normalised by its own statistics, so a published protocol states a number.
        learning_rate: rate after burn-in.
        burn_in: steps in which the rate grows as (step / burn_in)^4.
        policy: how the rate changes after burn-in: steps, cosine or poly.
        optimizer: sgd | muon, and its options.
        momentum: of the optimiser.
        nesterov: Nesterov momentum, of SGD.
        weight_decay: of SGD; applies to convolution weights only.
        ema_decay: decay of the averaged weights that are evaluated and released; 0 = no averaging.
        precision: fp32 | tf32 (GPUs) | fp16 (GPUs) | bf16 | auto (bf16 where the processor or GPU computes it natively,
            else fp16 on a GPU and fp32 on a CPU).
        deterministic: on a GPU, the same bits in every run; slower. On a CPU they always are the same.
        num_workers: processes that read and augment; changes only the speed.
        sync_batchnorm: with several processes, normalise with the statistics of all their images.
        log_every: steps between two lines of metrics.jsonl.
        save_every: steps between two writes of last.safetensors.
    """

    seed: Natural = 0
    max_steps: Count = 500_000
    batch_size: Count = 64
    subdivisions: Parts = 1
    learning_rate: Positive = 0.001
    burn_in: Natural = 1000
    policy: Annotated[StepsPolicy | CosinePolicy | PolyPolicy, Field(discriminator="name")] = field(
        default_factory=StepsPolicy
    )
    optimizer: OptimizerConfig = SGDConfig()
    momentum: BelowOne = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 5e-4
    ema_decay: BelowOne = 0.0
    precision: Literal["auto", "fp32", "tf32", "fp16", "bf16"] = "auto"
    deterministic: bool = False
    num_workers: Natural = 1
    sync_batchnorm: bool = False
    log_every: Count = 10
    save_every: Count = 1000

    def __post_init__(self) -> None:
        if self.subdivisions and self.batch_size % self.subdivisions:
            raise ValueError(
                f"subdivisions: expected a divisor of batch_size {self.batch_size}, got {self.subdivisions}"
            )
