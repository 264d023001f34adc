"""Pascal VOC: Annotations/*.xml, JPEGImages/, ImageSets/Main/<split>.txt."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from detector.data.dataset import DatasetBuilder, DetectionDataset
from detector.data.images import read_image_size
from detector.errors import InputError, read_text


def list_voc_splits(root: Path) -> list[str]:
    """Names of the splits below a VOC root."""
    return sorted(path.stem for path in (root / "ImageSets" / "Main").glob("*.txt") if "_" not in path.stem)


def load_voc(root: Path, split: str, *, class_names: tuple[str, ...] | None, policy: str) -> DetectionDataset:
    """Reads one split.

    Coordinates are read as 0-based corners, which today's labelling tools write; the original VOC files count from 1,
    which shifts a box by one pixel. Objects marked "difficult" become crowd: they are not training targets, and
    missing them is not an error.

    Args:
        root: the folder with Annotations/.
        split: name of a list in ImageSets/Main.
        class_names: the classes in the order of the labels; None = those that occur, sorted by name.
        policy: see `DataConfig.bad_labels`.

    Raises:
        InputError: the split does not exist or has no readable image.
    """
    listing = root / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        raise InputError(f"{listing}: no such split; expected one of {', '.join(list_voc_splits(root)) or 'none'}")
    stems = [line.split()[0] for line in read_text(listing).splitlines() if line.strip()]
    trees = {stem: _parse(root / "Annotations" / f"{stem}.xml") for stem in dict.fromkeys(stems)}
    if class_names is None:
        found = (tree.iter("object") for tree in trees.values() if not isinstance(tree, str))
        class_names = tuple(sorted({item.findtext("name", "").strip() for items in found for item in items}))
    builder = DatasetBuilder(f"{root} ({split})", class_names, policy)
    for stem, tree in trees.items():
        annotation = root / "Annotations" / f"{stem}.xml"
        if isinstance(tree, str):
            builder.report(str(annotation), "unreadable_annotation", tree, "image dropped")
        else:
            _add(builder, root, stem, annotation, tree)
    if len(stems) > len(trees):
        builder.report(str(listing), "duplicate_image", f"{len(stems) - len(trees)} repeated lines", "image dropped")
    return builder.build()


def _parse(path: Path) -> ElementTree.Element | str:
    """The root element, or why there is none."""
    try:
        return ElementTree.parse(path).getroot()  # noqa: S314 (expat limits expansion)
    except OSError as error:
        return error.strerror or str(error)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        return f"not valid XML: {error}"


def _add(builder: DatasetBuilder, root: Path, stem: str, annotation: Path, tree: ElementTree.Element) -> None:
    image_path = _find_image(root / "JPEGImages", stem, tree.findtext("filename", ""))
    if image_path is None:
        return builder.report(str(annotation), "missing_image", f"JPEGImages/{stem}.*", "image dropped")
    size_hw = (_integer(tree.findtext("size/height")), _integer(tree.findtext("size/width")))
    if min(size_hw) <= 0:
        try:
            size_hw = read_image_size(image_path)
        except InputError as error:
            return builder.report(str(image_path), "unreadable_image", str(error), "image dropped")
    builder.add_image(image_path, image_id=stem, size_hw=size_hw)
    for number, item in enumerate(tree.iter("object"), 1):
        box = tuple(_number(item.findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax"))
        builder.add_object(
            (box[0], box[1], box[2], box[3]),
            item.findtext("name", "").strip(),
            crowd=item.findtext("difficult", "0").strip() == "1",
            where=f"{annotation}, object {number}",
        )
    return None


def _find_image(folder: Path, stem: str, filename: str) -> Path | None:
    candidates = [folder / f"{stem}.jpg", folder / f"{stem}.png", folder / f"{stem}.jpeg", folder / Path(filename).name]
    return next((path for path in candidates if path.is_file()), None)


def _number(text: str | None) -> float:
    """The number; NaN if the text is not a number, so that the rule `not_finite` reports it."""
    try:
        return float(text) if text is not None else float("nan")
    except ValueError:
        return float("nan")


def _integer(text: str | None) -> int:
    number = _number(text)
    return int(number) if number == number and abs(number) < 1e9 else 0
