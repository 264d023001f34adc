"""Opens data sets of all supported annotation formats, however they are laid out."""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from detector.data import exchange, voc, yolo
from detector.data.coco import fill_from_coco
from detector.data.dataset import DatasetBuilder, DetectionDataset
from detector.data.images import read_bytes
from detector.data.splits import EVERYTHING, group_by_split, in_part, parse_part, same_split
from detector.errors import InputError
from detector.files import list_files, printable

NO_DATASET = (
    "no data set recognised there; expected a COCO JSON, VOC or CVAT XML, LabelMe JSON, YOLO labels (data.yaml, .data, "
    "or .txt beside images) or a CSV with filename, class, xmin, ymin, xmax, ymax"
)
HELD_OUT = ("all[:80%]", "all[80%:]")
"""The parts for training and validation of a data set without splits."""
Fill = Callable[[DatasetBuilder, str], Sequence[int] | None]
FillFrom = Callable[[DatasetBuilder, Sequence[Path], Path], None]


@dataclass(frozen=True)
class Layout:
    """A data set as it lies on the disk.

    Attributes:
        format: for messages.
        splits: their names.
        fill: adds the images of a split to a builder; returns the ids of the classes in result files, if it has any.
        class_names: where the data set states them.
        others: other formats that are there as well.
    """

    format: str
    splits: tuple[str, ...]
    fill: Fill
    class_names: tuple[str, ...] | None = None
    others: tuple[str, ...] = ()


def open_dataset(
    path: str | Path,
    split: str | None = None,
    *,
    images_dir: str | Path | None = None,
    class_names: tuple[str, ...] | None = None,
    policy: str = "clip",
) -> DetectionDataset:
    """Opens a data set, recognising its format.

    Args:
        path: a folder or a file: COCO JSON, data.yaml, Darknet .data, CVAT XML, CSV.
        split: which part: a VOC list, a key of data.yaml, or what the names of files and folders say (train, val,
            test); a part of it as `train[:80%]`, chosen by a hash of each image's content. None = the first of `test`,
            `val`, `train`, or everything.
        images_dir: folder with the images of a COCO file.
        class_names: the model's classes; None = the data set's own.
        policy: see `DataConfig.bad_labels`.

    Raises:
        InputError: there is no data set, or it has none of the model's classes.
    """
    layout = find_layout(Path(path), images_dir=Path(images_dir) if images_dir is not None else None)
    name, low, high = parse_part(split) if split is not None else (_default(layout, Path(path)), 0.0, 1.0)
    found = same_split(name, layout.splits)
    if found is None:
        raise InputError(f"{path}: no split {name!r}; expected one of {', '.join(layout.splits)}")
    shown = f"{path} ({split or found})" if len(layout.splits) > 1 or split else str(path)
    builder = DatasetBuilder(shown, class_names or layout.class_names, policy)
    if (low, high) != (0.0, 1.0):
        builder.keep = partial(_is_in_part, low=low, high=high)
    dataset = builder.build(layout.fill(builder, found))
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


def _is_in_part(image: Path, *, low: float, high: float) -> bool:
    try:
        content = read_bytes(image)
    except InputError:
        content = b""  # reported when it is read
    return in_part(content, low, high)


def list_splits(path: str | Path) -> list[str]:
    """The splits of a data set; `all` if its files name none. Raises: InputError: there is no data set."""
    return list(find_layout(Path(path)).splits)


def _default(layout: Layout, path: Path) -> str:
    for name in ("test", "val", "train"):
        found = same_split(name, layout.splits)
        if found is not None:
            return found
    if len(layout.splits) == 1:
        return layout.splits[0]
    raise InputError(f"{path}: cannot choose a split; it has {', '.join(layout.splits)}; name one with --split")


def find_layout(path: Path, *, images_dir: Path | None = None) -> Layout:
    """Recognises the format of a data set. Raises: InputError: none is known."""
    if not path.exists():
        raise InputError(
            f"{path}: no such data set; give its folder, or a COCO JSON, data.yaml, .data, XML or CSV file, or fetch a "
            "public one with tools/download.py"
        )
    if path.is_file():
        layout = _layout_of_file(path, images_dir)
        if layout is None:
            raise InputError(f"{path}: {_kind_of_json(path) or 'unknown kind of data set'}; {NO_DATASET}")
        return layout
    found = [layout for layout in (_yolo_folder(path), _voc_folder(path), _coco_release(path, images_dir)) if layout]
    if not found:
        found = _recognise(path, list_files(path), images_dir)
    if not found:
        raise InputError(f"{path}: {NO_DATASET}; it has {_shown(path)}")
    return replace(found[0], others=tuple(dict.fromkeys(layout.format for layout in found[1:])))


def _recognise(root: Path, files: Sequence[Path], images_dir: Path | None) -> list[Layout]:
    """All formats that the files below a folder have, the likeliest first."""
    by_suffix: dict[str, list[Path]] = {}
    for path in files:
        by_suffix.setdefault(path.suffix.lower(), []).append(path)
    json_files, xml_files = by_suffix.get(".json", []), by_suffix.get(".xml", [])
    coco = [path for path in json_files if _kind_of_json(path) is None]
    found = [_coco(_coco_splits(coco, root), root, images_dir)] if coco else []
    kinds: list[tuple[str, list[Path], FillFrom]] = [
        ("LabelMe JSON", [path for path in json_files if _is_labelme(path)], exchange.fill_from_labelme),
        ("CVAT XML", [path for path in xml_files if _is_cvat(path)], exchange.fill_from_cvat),
        ("VOC XML", [path for path in xml_files if re.search(r"<annotation[\s>]", _start(path))], voc.fill_from_files),
        ("CSV", [path for path in by_suffix.get(".csv", []) if exchange.is_box_csv(path)], exchange.fill_from_csv),
    ]
    found += [_files(kind, group_by_split(those, root), root, fill_from) for kind, those, fill_from in kinds if those]
    loose = yolo.find_loose(root, files)
    if loose is not None:
        names, splits = loose
        found.append(
            Layout("YOLO labels", tuple(splits), partial(_fill_yolo, index=root, names=names, splits=splits), names)
        )
    return found


def _shown(folder: Path) -> str:
    """What is in a folder, for an error message."""
    files = list_files(folder)
    names = ", ".join(printable(path.relative_to(folder)) for path in files[:5])
    return f"{len(files)} files: {names}{', ...' if len(files) > 5 else ''}" if files else "no files"


def _layout_of_file(path: Path, images_dir: Path | None) -> Layout | None:
    suffix = path.suffix.lower()
    if suffix in {".yaml", ".yml", ".data"}:
        return _yolo_index(path)
    if suffix == ".json" and _kind_of_json(path) in {None, _NOT_COCO}:  # its reader says what is wrong
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        return _coco({EVERYTHING: path}, root, images_dir)
    if suffix == ".json" and _is_labelme(path):
        return _files("LabelMe JSON", {EVERYTHING: [path]}, path.parent, exchange.fill_from_labelme)
    if suffix == ".xml" and _is_cvat(path):
        return _files("CVAT XML", {EVERYTHING: [path]}, path.parent, exchange.fill_from_cvat)
    if suffix == ".csv" and exchange.is_box_csv(path):
        return _files("CSV", {EVERYTHING: [path]}, path.parent, exchange.fill_from_csv)
    return None


def _yolo_index(path: Path) -> Layout:
    names, splits = yolo.read_index(path)
    if not splits:
        raise InputError(f"{path}: names no split; expected train: and val:")
    fill = partial(_fill_yolo, index=path, names=names, splits=splits)
    return Layout(f"YOLO ({path.name})", tuple(splits), fill, names)


def _fill_yolo(
    builder: DatasetBuilder, split: str, *, index: Path, names: tuple[str, ...], splits: dict[str, list[Path]]
) -> None:
    yolo.fill(builder, index, names, splits[split])


def _yolo_folder(root: Path) -> Layout | None:
    indices = [path for path in sorted(root.glob("*.y*ml")) if yolo.has_names(path)]
    indices = sorted(indices, key=lambda path: path.name != "data.yaml") + sorted(root.glob("*.data"))
    return _yolo_index(indices[0]) if indices else None


def _voc_folder(root: Path) -> Layout | None:
    lists = voc.list_voc_splits(root) if (root / "Annotations").is_dir() else {}
    if not lists:
        return None

    def fill(builder: DatasetBuilder, split: str) -> None:
        voc.fill_from_list(builder, lists[split], root)

    return Layout("Pascal VOC", tuple(lists), fill)


def _coco_release(root: Path, images_dir: Path | None) -> Layout | None:
    """COCO's own layout, recognised without a walk through all images."""
    files = [*sorted(root.glob("*.json")), *sorted((root / "annotations").glob("*.json"))]
    splits = _coco_splits([path for path in files if _kind_of_json(path) is None], root)
    return _coco(splits, root, images_dir) if splits else None


def _coco_splits(files: Sequence[Path], root: Path) -> dict[str, Path]:
    files = [path for path in files if path.name.startswith("instances")] or files  # not COCO's captions and keypoints
    splits: dict[str, Path] = {}
    for name, paths in group_by_split(files, root).items():
        clear = len(paths) == 1 and (name != EVERYTHING or len(files) == 1)
        splits |= {name if clear else str(path.relative_to(root).with_suffix("")): path for path in paths}
    return splits


def _coco(splits: dict[str, Path], root: Path, images_dir: Path | None) -> Layout:
    def fill(builder: DatasetBuilder, split: str) -> Sequence[int] | None:
        return fill_from_coco(builder, splits[split], root, images_dir)

    return Layout("COCO JSON", tuple(splits), fill)


def _files(
    kind: str,
    splits: dict[str, list[Path]],
    root: Path,
    fill_from: FillFrom,
) -> Layout:
    def fill(builder: DatasetBuilder, split: str) -> None:
        fill_from(builder, splits[split], root)

    return Layout(kind, tuple(splits), fill)


def _kind_of_json(path: Path) -> str | None:
    """None for a COCO instances file; else what a JSON file is."""
    if path.suffix.lower() != ".json":
        return ""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            has = {key for key in _JSON_KEYS if content.find(f'"{key}"'.encode()) >= 0}
    except (OSError, ValueError):
        return _NOT_COCO
    if "images" in has and ({"annotations", "categories"} <= has or path.stem.startswith("image_info")):
        return None
    kinds = {
        "shapes": "a LabelMe file",
        "_via_img_metadata": "a VIA project (export it as COCO)",
        "regions": "a VIA file (export it as COCO)",
        "from_name": LABEL_STUDIO,
        "rectanglelabels": LABEL_STUDIO,
        "coordinates": "a CreateML file (export it as COCO)",
    }
    return next((kind for key, kind in kinds.items() if key in has), _NOT_COCO)


LABEL_STUDIO = "Label Studio's own JSON (export it as COCO)"
_NOT_COCO = "not a COCO instances file"
_JSON_KEYS = (
    *("images", "annotations", "categories", "shapes", "_via_img_metadata", "regions", "from_name", "rectanglelabels"),
    "coordinates",
)


def _is_labelme(path: Path) -> bool:
    return _kind_of_json(path) == "a LabelMe file"


def _is_cvat(path: Path) -> bool:
    return "<annotations" in _start(path)


def _start(path: Path) -> str:
    """The beginning of a text file."""
    try:
        with path.open("rb") as file:
            return file.read(4096).replace(b"\0", b"").decode("utf-8", "replace")
    except OSError:
        return ""
