"""The table of public models, and which of them are here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from detector.config.load import read_yaml
from detector.errors import InputError

TABLE = Path(__file__).with_name("models.yaml")
PROJECT_ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("weights/zoo")
SOURCE_OF_BY_HAND = "Google Drive, linked in the README of github.com/WongKinYiu/CrossStagePartialNetworks"


@dataclass(frozen=True)
class ZooModel:
    """A row.

    Attributes:
        name: what the user calls it.
        kind: detector | classifier.
        input: side of its input in pixels.
        cfg, weights: paths below the host.
        bytes: size of the weights.
        licence: what its authors say.
        ap50: published AP50 on COCO in percent.
        sha256, md5: of the weights, where published.
    """

    name: str
    kind: str
    input: int
    cfg: str
    weights: str
    bytes: int
    licence: str
    ap50: float | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def source(self) -> str:
        """OWNER/REPOSITORY on github.com."""
        return "/".join(self.weights.split("/")[:2])

    def files(self, folder: Path) -> tuple[Path, Path, Path]:
        """Its cfg, weights and names in a folder."""
        cfg, weights, names = (folder / f"{self.name}{suffix}" for suffix in (".cfg", ".weights", ".names"))
        return cfg, weights, names


@cache
def zoo() -> dict[str, ZooModel]:
    """All models that can be fetched, by name."""
    table = _read()
    rows = {}
    for name, row in table["models"].items():
        rows[name] = ZooModel(name=name, **{**row, "licence": table["licences"][row["licence"]]})
    return rows


def by_hand() -> dict[str, str]:
    """Models that are to be had only by hand: name -> what to do."""
    found = {}
    for name, row in _read()["by_hand"].items():
        size = f" ({row['bytes']:,} bytes)" if row["bytes"] else ""
        found[name] = f"{SOURCE_OF_BY_HAND}: put {name}.cfg and {name}.weights{size} into {FOLDER / name}"
    return found


def coco_names() -> tuple[str, ...]:
    """COCO's 80 classes, in the order of these models' outputs."""
    return tuple(_read()["coco"])


def cfg_of(model: str) -> str:
    """The path of the cfg if `model` is the name of a public model, else `model` itself.

    Raises:
        InputError: it is such a name, but the model has not been fetched.
    """
    if Path(model).exists() or model not in {*zoo(), *by_hand()}:
        return model
    for root in (FOLDER, PROJECT_ROOT / FOLDER):
        cfg, weights = (root / model / f"{model}{suffix}" for suffix in (".cfg", ".weights"))
        if cfg.is_file() and weights.is_file():
            return str(cfg)
    if model in by_hand():
        raise InputError(f"{model}: is not here; get it by hand from {by_hand()[model]}")
    raise InputError(f"{model}: is not here yet; fetch it with: python tools/download.py {model}")


def weights_of(model: str) -> str:
    """The path of the weights if `model` is the name of a public model, else `model` itself. Raises: InputError."""
    cfg = cfg_of(model)
    return cfg if cfg == model else str(Path(cfg).with_suffix(".weights"))


def backbone_file(name: str, root: Path = FOLDER) -> Path:
    """Where the published weights of timm/NAME are kept."""
    return root / f"{name}.safetensors"


def fetched(name: str) -> Path:
    """The published weights of the backbone timm/NAME. Raises: InputError: they have not been fetched."""
    for root in (FOLDER, PROJECT_ROOT / FOLDER):
        if backbone_file(name, root).is_file():
            return backbone_file(name, root)
    raise InputError(
        f"model.backbone.pretrained: the weights of {name} are not here yet; fetch them with: "
        f"python tools/download.py {name}"
    )


def list_text() -> str:
    """All models as a table for people."""
    lines = [f"{'name':<20}{'kind':<12}{'input':>6}{'MB':>8}{'AP50':>7}  {'from':<42}licence"]
    for row in zoo().values():
        ap50 = f"{row.ap50:.1f}" if row.ap50 is not None else "-"
        size = f"{row.bytes / 1e6:.1f}"
        lines.append(f"{row.name:<20}{row.kind:<12}{row.input:>6}{size:>8}{ap50:>7}  {row.source:<42}{row.licence}")
    lines += ["", "by hand:", *(f"{name:<24}{how}" for name, how in by_hand().items())]
    return "\n".join(lines)


@cache
def _read() -> dict[str, Any]:
    table: dict[str, Any] = read_yaml(TABLE)
    return table
