"""Opens data sets of all supported annotation formats."""

from __future__ import annotations

from pathlib import Path

from detector.data.coco import load_coco
from detector.data.dataset import DetectionDataset
from detector.data.voc import list_voc_splits, load_voc
from detector.data.yolo import list_yolo_splits, load_yolo
from detector.errors import InputError

NO_DATASET = (
    "no data set recognised there; expected a COCO JSON, Annotations/ (VOC), a data.yaml (YOLO) or a .data file"
)


def open_dataset(
    path: str | Path,
    split: str | None = None,
    *,
    images_dir: str | Path | None = None,
    class_names: tuple[str, ...] | None = None,
    policy: str = "clip",
) -> DetectionDataset:
    """Opens a data set, recognising its format from the path.

    Args:
        path: a COCO instances JSON, a folder with such files, a VOC root, a folder with a data.yaml, a YOLO data.yaml,
            or a Darknet .data file.
        split: which part: a VOC list, a key of data.yaml, or for a COCO folder the JSON in it (with or without
            .json). Not needed for a JSON; otherwise None means the first of `test`, `val`, `valid`, `train`.
        images_dir: folder with the images of a COCO file.
        class_names: the model's classes; None = the data set's own.
        policy: see `DataConfig.bad_labels`.

    Raises:
        InputError: there is no data set, or it has none of the model's classes.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(
            f"{path}: no such data set; give a COCO JSON, a VOC folder, a YOLO data.yaml or a Darknet .data, or "
            "fetch a public one with tools/download.py"
        )
    folder = Path(images_dir) if images_dir is not None else None
    if path.is_dir() and (path / "Annotations").is_dir():
        dataset = load_voc(path, split or _default(list_voc_splits(path), path), class_names=class_names, policy=policy)
    elif path.is_dir() and (path / "data.yaml").is_file():
        return open_dataset(path / "data.yaml", split, class_names=class_names, policy=policy)
    elif path.is_dir():
        annotations = _coco_file(path, split)
        dataset = load_coco(annotations, images_dir=folder, class_names=class_names, policy=policy)
    elif path.suffix == ".json":
        dataset = load_coco(path, images_dir=folder, class_names=class_names, policy=policy)
    elif path.suffix in {".yaml", ".yml", ".data"}:
        dataset = load_yolo(
            path, split or _default(list_yolo_splits(path), path), class_names=class_names, policy=policy
        )
    else:
        raise InputError(f"{path}: unknown kind of data set; expected .json, .yaml, .data or a folder")
    if (
        class_names is not None
        and len(dataset.labels) == 0
        and any(p.rule == "unknown_class" for p in dataset.problems)
    ):
        raise InputError(
            f"{dataset.name}: none of its objects has a class of the model ({', '.join(class_names[:8])}); "
            "check model.class_names"
        )
    return dataset


def list_splits(path: str | Path) -> list[str | None]:
    """The splits of a data set, for reports; [None] if there is only one."""
    path = Path(path)
    if path.is_dir() and (path / "Annotations").is_dir():
        return [*list_voc_splits(path)]
    if path.is_dir() and (path / "data.yaml").is_file():
        return [*list_yolo_splits(path / "data.yaml")]
    if path.is_dir():
        return [str(file.relative_to(path)) for file in _coco_files(path)]
    if path.suffix in {".yaml", ".yml", ".data"}:
        return [*list_yolo_splits(path)]
    return [None]


def _default(splits: list[str], path: Path) -> str:
    for name in ("test", "val", "valid", "train"):
        if name in splits:
            return name
    raise InputError(f"{path}: cannot choose a split; it has {', '.join(splits) or 'none'}; name one with --split")


def _coco_files(folder: Path) -> list[Path]:
    return sorted(file for pattern in ("*.json", "annotations/instances*.json") for file in folder.glob(pattern))


def _coco_file(folder: Path, split: str | None) -> Path:
    if split is not None:
        for candidate in (folder / split, folder / f"{split}.json", folder / "annotations" / f"instances_{split}.json"):
            if candidate.is_file():
                return candidate
        if not _coco_files(folder):
            raise InputError(f"{folder}: {NO_DATASET}")
        raise InputError(f"{folder}: no split {split!r}; it has {', '.join(map(str, list_splits(folder))) or 'none'}")
    files = _coco_files(folder)
    if not files:
        raise InputError(f"{folder}: {NO_DATASET}")
    if len(files) == 1:
        return files[0]
    by_stem = {file.stem.removeprefix("instances_"): file for file in files}
    return by_stem[_default(list(by_stem), folder)]
