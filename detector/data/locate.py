"""Finds the images that label files belong to, wherever in a data set they are."""

from __future__ import annotations

from pathlib import Path

from detector.data.dataset import DatasetBuilder
from detector.data.splits import split_of
from detector.files import Finder, list_images


class ImageFinder:
    """Finds images below a folder, first those nearest to the label file, never those of another split.

    Args:
        root: folder of the data set.
        folders: where to look before any other, such as the user's own choice.
    """

    def __init__(self, root: Path, *folders: Path) -> None:
        self.root = root
        self._first = Finder(*folders)
        self._folders: list[Path] | None = None
        self._finders: dict[Path, Finder] = {}

    def find(self, name: str, label_file: Path, *, any_suffix: bool = False) -> Path | None:
        """The image of this name, or None; `Finder` has the rule."""
        if not name:
            return None
        first = self._first.find(name, any_suffix=any_suffix, here=True) if self._first.folders else None
        return first or self._finder(label_file).find(name, any_suffix=any_suffix)

    def describe(self, name: str, label_file: Path) -> str:
        """What was looked for, and where."""
        return f"no {name} in {self._finder(label_file).describe()}"

    def report(self, builder: DatasetBuilder) -> None:
        """Reports once what was found in other folders than named."""
        found = {name: path for finder in self._finders.values() for name, path in finder.elsewhere.items()}
        if found:
            name, path = next(iter(found.items()))
            value = f"{len(found)} paths lead to other folders, such as {name}; found as {path}"
            builder.report(str(self.root), "found_elsewhere", value, "read there")

    def _finder(self, label_file: Path) -> Finder:
        folder = label_file.parent
        if folder not in self._finders:
            self._finders[folder] = Finder(*self._first.folders, *self._near(label_file))
        return self._finders[folder]

    def _near(self, label_file: Path) -> list[Path]:
        if self._folders is None:
            self._folders = sorted({path.parent for path in list_images(self.root)})
        folder, split = label_file.parent, self._split(label_file)
        words = set(folder.parts)

        def distance(other: Path) -> tuple[bool, int, str]:
            return other != folder, -len(words & set(other.parts)), str(other)

        others = [one for one in self._folders if split is None or self._split(one) in {None, split}]
        return sorted(others, key=distance) or [folder]

    def _split(self, path: Path) -> str | None:
        return split_of(path.relative_to(self.root)) if path.is_relative_to(self.root) else None
