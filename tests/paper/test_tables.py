"""The published tables: every row builds, and its costs match the paper or are a known miss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from detector.analysis.complexity import measure_complexity
from detector.config import ClassifyConfig, PolyPolicy, load_run_config
from detector.errors import InputError
from detector.paper.tables import (
    PaperRow,
    Reproduction,
    as_json,
    figure_7_text,
    figure_8_text,
    figure_layers,
    load_table,
    reproduce,
    summary,
    table_text,
)

TABLES = ("1", "2", "3", "4", "5")
# Rows that miss their tolerance (1 % for reconstructions, the printed digits for others), and the largest deviation.
KNOWN_MISSES = {
    ("1", "CSP (fusion first) .75"): 0.10,
    ("1", "CSP (fusion first) .25"): 0.068,
    ("3", "CSPDenseNet Reference"): 0.066,
    ("4", "YOLOv3 Darknet53 608"): 0.007,
    ("4", "YOLOv3 Darknet53 416"): 0.007,
    ("4", "YOLOv3 Darknet53 320"): 0.007,
    ("4", "PRN PeleeNet 416"): 0.008,
    ("4", "YOLOv3(tiny) Darknet Ref. 416"): 0.002,
    ("4", "PRN Darknet Ref. 416"): 0.006,
    ("5", "YOLOv3-tiny 416"): 0.002,
    ("5", "YOLOv3-tiny-PRN 416"): 0.006,
}


@pytest.mark.parametrize("number", TABLES)
def test_every_row_meets_its_tolerance_or_is_a_known_miss(number: str) -> None:
    for row in load_table(number)[1]:
        found = reproduce(row)
        if row.config is None:
            assert row.impossible, row.name
            assert found.status == "impossible"
            continue
        if found.status == "built":
            assert not {"params", "bflops", "cio"} & row.published.keys(), row.name
            continue
        largest = max(map(abs, found.deviations.values()), default=0.0)
        known = KNOWN_MISSES.get((number, row.name))
        assert found.within_tolerance == (known is None), (row.name, found.deviations)
        if known is not None:
            assert largest <= known, (row.name, found.deviations)
        assert not {"ap", "ap50", "top1", "top5", "fps"} & found.ours.keys(), "not measured here"


def test_every_config_of_the_paper_belongs_to_a_row() -> None:
    root = Path(__file__).resolve().parents[2]
    used = {row.config for number in TABLES for row in load_table(number)[1]}
    unused = {path for folder in ("coco", "imagenet") for path in (root / "configs" / folder).glob("*.yaml")} - used
    assert {path.stem for path in unused} == {"peleenet_yolo", "base"}, "Figure 7 needs the first one"


def test_reconstructions_say_so_in_config_and_row() -> None:
    for number in TABLES:
        for row in load_table(number)[1]:
            if row.config is not None:
                assert ("A reconstruction" in row.config.read_text()) == row.reconstruction, row.name


def test_the_size_in_a_rows_name_is_the_size_of_its_config() -> None:
    for row in load_table("4")[1]:
        if row.config is not None:
            size = int(next(word for word in row.name.split() if word.isdigit() and len(word) == 3))
            assert load_run_config(row.config).preprocess.size_hw == (size, size), row.name


def test_classifiers_have_the_protocol_of_the_paper() -> None:
    for number in ("1", "3"):
        for row in load_table(number)[1]:
            if row.config is None:
                continue
            config = load_run_config(row.config)
            assert isinstance(config, ClassifyConfig)
            train = config.train
            assert (train.policy, train.learning_rate, train.batch_size) == (PolyPolicy("poly", 4.0), 0.1, 128)
            assert train.max_steps in {800_000, 1_200_000, 1_600_000}
            assert (config.augment.min_crop, config.augment.max_crop) == (128, 448)


def fake(status: str = "exact", **changes: object) -> Reproduction:
    fields = {"name": "x", "config": Path("x"), "reconstruction": False, "impossible": None, "note": None}
    row = PaperRow(**{**fields, "published": {"bflops": "1.00", "ap": "20.0"}, **changes})  # type: ignore[arg-type]
    return Reproduction(row, {"bflops": 1.0}, {}, status)


def test_the_summary_counts() -> None:
    rows = [
        fake(),
        fake("within 1 %", reconstruction=True),
        fake("within 1 %"),
        fake("built"),
        fake("impossible", config=None, impossible="elsewhere"),
    ]
    assert summary(rows) == (
        "rows: 5, within tolerance: 2, reconstructions: 1, impossible: 1 (1 elsewhere); without published counts: 1"
    )


def test_a_column_that_was_not_measured_stays_empty() -> None:
    text = table_text("title", [fake()])
    assert "20.0 /" in text
    assert "20.0 / 20" not in text
    assert as_json([fake(config=None)])["rows"][0]["ours"] == {"bflops": 1.0}


def test_an_unknown_table_or_figure_is_an_error() -> None:
    with pytest.raises(InputError, match="expected one of 1, 2, 3, 4, 5"):
        load_table("6")
    with pytest.raises(InputError, match="expected 7 or 8"):
        figure_layers("9")


def test_figure_7_has_the_published_bottlenecks() -> None:
    layers = figure_layers("7")
    largest = {name: max(cost.bflops for cost in costs) for name, costs in layers.items()}
    assert {name: round(value, 4) for name, value in largest.items()} == {
        "PeleeNet-YOLO": 0.9968,
        "PeleeNet-PRN": 0.3544,
        "CSPPeleeNet-EFM": 0.1994,
    }
    text = figure_7_text(layers)
    assert "-80%" in text
    assert "-44%" in text


def test_figure_8_has_the_published_traffic() -> None:
    layers = figure_layers("8")
    traffic = {name: round(sum(cost.cio for cost in costs) / 1e6, 1) for name, costs in layers.items()}
    assert traffic == {"ResNeXt50": 34.4, "CSPResNeXt50": 32.6}
    assert "34.41" in figure_8_text(layers)


@pytest.mark.parametrize(("channels", "layers", "growth"), [(32, 4, 8), (64, 6, 32)])
def test_the_papers_formulas_for_the_traffic_of_dense_blocks(channels: int, layers: int, growth: int) -> None:
    """Section 3: dense c*m + (m^2 + m)*d/2, partial dense (c*m + (m^2 + m)*d)/2, in elements per position."""
    from torch import nn

    from detector.models.reference import plain_layer

    def traffic(width: int) -> float:
        block = nn.Sequential(*(plain_layer(width + number * growth, growth, "leaky") for number in range(layers)))
        with_entry = nn.Sequential(nn.Conv2d(3, width, 1), block)  # images have three channels
        costs = measure_complexity(with_entry, (8, 8))[1:]
        return sum(cost.cio for cost in costs) / 64

    growing = (layers**2 + layers) * growth / 2
    assert traffic(channels) == channels * layers + growing
    assert math.isclose(traffic(channels // 2), (channels * layers + 2 * growing) / 2)
