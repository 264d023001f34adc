"""What to save and report when a training step fails: a value that is not finite, or out of memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detector.config import RunConfig
from detector.data.batch import Batch
from detector.data.coco_file import coco_annotation, coco_categories
from detector.data.images import write_image
from detector.errors import InputError
from detector.models.precision import autocast, compute_dtype, to_network_input
from detector.train.distributed import Ranks
from detector.train.state import RunState
from detector.train.task import AnyBatch


@dataclass(frozen=True)
class Suspect:
    """A part of a step, which may hold a value that is not finite: its batch, and its loss terms (T,)."""

    batch: AnyBatch
    loss: Tensor


def is_finite(loss: Tensor, network: nn.Module) -> Tensor:
    """Whether the loss terms and all gradients are finite, a bool on their device; cheap: a norm of each gradient."""
    gradients = [value.grad for value in network.parameters() if value.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    return torch.isfinite(torch.cat((loss.detach(), norms))).all()


def explain_nonfinite(
    config: RunConfig,
    state: RunState,
    ranks: Ranks,
    suspect: Suspect | None,
    batch: AnyBatch,
    save_batch: Callable[[Path, Any], None],
) -> InputError:
    """Builds the error that names the first value that is not finite; saves the batch in the run's folder.

    Args:
        config: the run's config.
        state: only its normalisation statistics have changed since the last step.
        ranks: all of them must call this, since a layer may exchange statistics.
        suspect: this rank's first part with such a value; None when only other ranks have one.
        batch: this rank's last part.
        save_batch: writes a batch into a folder.
    """
    looked_at = suspect.batch if suspect is not None else batch
    with autocast(ranks.device, config.train.precision):
        where = first_nonfinite_layer(state.network, to_network_input(looked_at.images, ranks.device))
    if suspect is None:
        where = "another process"
    elif where is None and not torch.isfinite(suspect.loss).all():
        where = "the loss (all layers are finite)"
    elif where is None:
        where = first_nonfinite_gradient(state.network)
    step, rank = state.step + 1, f"_rank_{ranks.rank}" if ranks.size > 1 else ""
    folder = Path(config.run_dir or ".") / f"nonfinite_step_{step}{rank}"
    saved = f"saved in {folder}"
    try:
        save_batch(folder, looked_at)
    except (OSError, InputError) as error:
        saved = f"not saved: {error}"
    return InputError(
        f"step {step}: the first value that is not finite is in {where}, images {looked_at.image_ids}, {saved}; lower "
        "train.learning_rate, lengthen train.burn_in, or look at these images"
    )


def first_nonfinite_layer(network: nn.Module, images: Tensor) -> str | None:
    """Where the first value that is not finite appears: a weight, or the output of a layer; None = nowhere.

    Args:
        network: in training mode; not changed.
        images: (B, 3, H, W), as fed to the network. Call this in the same autocast context.
    """
    if not torch.isfinite(images).all():
        return "the images"
    for name, value in network.named_parameters():  # not the statistics: the failed pass corrupted them
        if not torch.isfinite(value).all():
            return f"the weights of {name}"
    found: list[str] = []
    twin = copy.deepcopy(network)

    def watch(name: str) -> Any:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(f"the output of {name}")

        return look

    for name, module in twin.named_modules():
        if not list(module.children()):
            module.register_forward_hook(watch(name))
    with torch.no_grad():
        twin(images)
    return found[0] if found else None


def first_nonfinite_gradient(network: nn.Module) -> str:
    """The last layer with a gradient that is not finite, which is the first one in the backward pass."""
    bad = [
        name
        for name, value in network.named_parameters()
        if value.grad is not None and not torch.isfinite(value.grad).all()
    ]
    return f"the gradient of {bad[-1]}" if bad else "a gradient"


def save_batch(folder: Path, batch: Batch, class_names: tuple[str, ...]) -> None:
    """Writes a batch as a small COCO data set: instances.json and images/*.png, losslessly."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(batch.images.permute(0, 2, 3, 1).cpu().numpy()):  # (H, W, 3)
        name = f"{number:03}.png"
        write_image(folder / "images" / name, image)
        height, width = image.shape[:2]
        record = {"id": number + 1, "file_name": name, "height": height, "width": width}
        images.append({**record, "source": batch.image_ids[number]})
        boxes, labels = batch.objects(number)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            annotations.append(coco_annotation(len(annotations), image=number, label=label, box_xyxy=box))
    content = {"images": images, "annotations": annotations, "categories": coco_categories(class_names)}
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def explain_out_of_memory(config: RunConfig, ranks: Ranks) -> Iterator[None]:
    """Turns a failed allocation into advice on how many parts to split the batch into.

    Raises:
        InputError: with the advice, instead of the allocation's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        settings = config.train
        advice = subdivisions_advice(settings.batch_size // ranks.size, settings.subdivisions)
        full = compute_dtype(settings.precision, ranks.device) == torch.float32
        precision = "; train.precision=bf16 halves the feature maps" if full else ""
        raise InputError(f"out of memory with {advice}{precision}") from error


def subdivisions_advice(num_images: int, subdivisions: int) -> str:
    """What to change when memory runs out.

    Args:
        num_images: images per step in this process.
        subdivisions: number of parts they are split into.
    """
    part = num_images // subdivisions
    larger = [count for count in range(subdivisions + 1, num_images + 1) if num_images % count == 0]
    if not larger:
        return f"{part} image at a time: lower preprocess.size_hw; halving both sides needs a quarter of the memory"
    images = num_images // larger[0]
    return (
        f"{part} images at a time: train.subdivisions={larger[0]} (parts of {images} images) needs about "
        f"{100 * images // part} % of the memory"
    )


def _is_out_of_memory(error: BaseException) -> bool:
    texts = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(text in str(error) for text in texts)
