"""The parts of a report: one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from detector import __version__
from detector.files import write_atomically
from detector.report.plots import plot_curves
from detector.structures import Image

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d0d7de; }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: 13px; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.row svg, .plot { max-width: 100%; width: 570px; height: auto; }
figure { margin: 0; } figcaption { font-size: 12px; color: #57606a; max-width: 170px; overflow-wrap: anywhere; }
.wide figcaption { max-width: 570px; } .wide img { width: 570px; max-width: 100%; }
.big { font-size: 2rem; font-weight: 600; } .tile { background: #f6f8fa; padding: .6rem 1.2rem; border-radius: 6px; }
"""


def write_page(path: Path, sections: Sequence[str]) -> None:
    """Writes the page of a run to `path`, in the run's folder."""
    title = html.escape(f"{path.parent.name} - detector {__version__}")
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><body>"
        f"{''.join(sections)}</body></html>\n"
    )
    write_atomically(path, page.encode())


def heading(name: str, figures: Mapping[str, float | None]) -> str:
    """The run's name and its most important figures, by their titles."""
    tiles = ""
    for title, figure in figures.items():
        number = "-" if figure is None else f"{figure:.3f}"
        tiles += f"<div class=tile><div class=big>{number}</div>{html.escape(title)}</div>"
    return f"<h1>{html.escape(name)}</h1><div class=row>{tiles}</div>"


def section(title: str, content: str) -> str:
    """A part of the page; `content` is HTML."""
    return f"<h2>{html.escape(title)}</h2>{content}"


def text_section(title: str, text: str) -> str:
    """A part of the page with preformatted text."""
    return section(title, f"<pre>{html.escape(text)}</pre>")


def images_section(title: str, images: Sequence[tuple[Image, str]], *, text: str = "", wide: bool = False) -> str:
    """Images with their captions."""
    figures = "".join(_figure(image, caption) for image, caption in images)
    explained = f"<p>{html.escape(text)}</p>" if text else ""
    return section(title, f"{explained}<div class='row{' wide' if wide else ''}'>{figures or 'none'}</div>")


def curves_section(record: Path, metrics: Mapping[str, str]) -> str:
    """Plots of metrics.jsonl over the steps: all loss terms, the metrics (title -> key), the learning rate."""
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()] if record.is_file() else []

    def curve(key: str) -> tuple[list[float], list[float]]:
        rows = [line for line in lines if line.get(key) is not None]
        return [row["step"] for row in rows], [row[key] for row in rows]

    losses = dict.fromkeys(key for line in lines for key in line if key.startswith("loss/"))  # each once, in order
    if len(losses) == 2:
        losses.pop("loss/total", None)  # equals the only term
    terms = {key.removeprefix("loss/"): curve(key) for key in losses}
    measured = {title: curve(f"val/{key}") for title, key in metrics.items()}
    rate = {"learning rate": curve("learning_rate")}
    plots = (
        svg(lambda file: plot_curves(file, terms, title="Loss terms", log=True))
        + svg(lambda file: plot_curves(file, measured, title=f"{', '.join(metrics)} on the validation split"))
        + svg(lambda file: plot_curves(file, rate, title="Learning rate"))
    )
    return section("Curves", f"<div class=row>{plots}</div>")


def png(draw_into: Callable[[BinaryIO], None]) -> str:
    """A plot, embedded as PNG."""
    file = io.BytesIO()
    draw_into(file)
    return f"<img class=plot alt='' src='data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'>"


def svg(draw_into: Callable[[BinaryIO], None]) -> str:
    """A plot, embedded as SVG."""
    file = io.BytesIO()
    draw_into(file)
    text = file.getvalue().decode()
    return text[text.index("<svg") :]


def _figure(image: Image, caption: str) -> str:
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    data = base64.b64encode(encoded.tobytes()).decode()
    text = html.escape(caption)
    return f"<figure><img src='data:image/jpeg;base64,{data}' alt='{text}'><figcaption>{text}</figcaption></figure>"
