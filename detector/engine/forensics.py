"""What to keep and to say when a training step goes wrong: the first value that is not finite, memory used up."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from detector.data.dataset import coco_annotation, coco_categories
from detector.errors import InputError
from detector.structures import Batch


def first_nonfinite_layer(network: nn.Module, images: Tensor) -> str:
    """Where the first value that is not finite appears: a weight, or the output of a layer.

    Args:
        network: in training mode; not changed.
        images: (B, 3, H, W), as it was fed. Call it in the same autocast context.
    """
    if not torch.isfinite(images).all():
        return "the images"
    for name, value in network.named_parameters():  # not the statistics: the pass that failed has spoilt them already
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
    return found[0] if found else "the loss (all layers are finite)"


def first_nonfinite_gradient(network: nn.Module) -> str | None:
    """The last layer with a gradient that is not finite (the first on the way back), or None.

    Cheap while all is well: one norm over all gradients.
    """
    gradients = [(name, value.grad) for name, value in network.named_parameters() if value.grad is not None]
    norms = torch.stack(torch._foreach_norm([gradient for _, gradient in gradients]))
    if torch.isfinite(norms).all():
        return None
    bad = [name for (name, _), norm in zip(gradients, norms, strict=True) if not torch.isfinite(norm)]
    return f"the gradient of {bad[-1]}"


def save_batch(folder: Path, batch: Batch, class_names: tuple[str, ...]) -> None:
    """Writes a batch as a small COCO data set: instances.json and images/*.png, losslessly."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(batch.images.permute(0, 2, 3, 1).cpu().numpy()):  # (H, W, 3)
        name = f"{number:03}.png"
        cv2.imwrite(str(folder / "images" / name), np.ascontiguousarray(image[..., ::-1]))
        height, width = image.shape[:2]
        record = {"id": number + 1, "file_name": name, "height": height, "width": width}
        images.append({**record, "source": batch.image_ids[number]})
        for box, label in zip(batch.boxes_xyxy[number].tolist(), batch.labels[number].tolist(), strict=True):
            annotations.append(coco_annotation(len(annotations), image=number, label=label, box_xyxy=box))
    content = {"images": images, "annotations": annotations, "categories": coco_categories(class_names)}
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def explain_out_of_memory(num_images: int, subdivisions: int, *, fp32: bool) -> Iterator[None]:
    """Turns an allocation that failed into advice: into how many parts the batch must be cut.

    Args:
        num_images: of a step, for this process.
        subdivisions: parts that they are computed in.
        fp32: whether there is half of the memory to be saved by bf16.

    Raises:
        InputError: with the advice, in place of the failed allocation's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        part = num_images // subdivisions
        larger = [count for count in range(subdivisions + 1, num_images + 1) if num_images % count == 0]
        if larger:
            images = num_images // larger[0]
            share = 100 * images // part
            advice = f"train.subdivisions={larger[0]} (parts of {images} images) needs about {share} % of it"
        else:
            advice = "the parts have one image already: lower preprocess.size_hw; half of each side needs a quarter"
        precision = "; train.precision=bf16 halves the feature maps" if fp32 else ""
        raise InputError(f"out of memory with {part} images at a time: {advice}{precision}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    texts = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or any(text in str(error) for text in texts)
