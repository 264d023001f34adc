"""The report of a detector's run: curves, classes, worst images, anchors, label suspects."""

from __future__ import annotations

import html
import itertools
from pathlib import Path

from detector.config import DetectConfig, to_yaml
from detector.data.dataset import DetectionDataset, describe
from detector.evaluate.confusion import SHOWN_SCORE, Mistakes, count_mistakes
from detector.evaluate.detection import Evaluation
from detector.evaluate.table import metrics_table
from detector.inference.predictor import Predictor
from detector.postprocess import Decoder
from detector.report.evaluation import BACKGROUND, CONFUSION_TITLE, worst_images
from detector.report.html import curves_section, heading, images_section, png, section, svg, text_section, write_page
from detector.report.label_audit import LabelAudit, Suspect, audit_labels, list_of, pictures
from detector.report.plots import plot_bars, plot_confusion, plot_precision_recall

NUM_SUSPECTS, NUM_LISTED = 48, 1000
NUM_WORST = 8


def write_run_report(
    path: Path,
    config: DetectConfig,
    predictor: Predictor,
    train_set: DetectionDataset,
    val_set: DetectionDataset,
    evaluation: Evaluation,
    *,
    progress: bool = False,
) -> None:
    """Audits the labels of `train_set` and writes the report.

    Args:
        path: the HTML file; metrics.jsonl is read from its folder.
        config: the run's config.
        predictor: has the evaluation's thresholds.
        train_set: its labels are audited.
        val_set: the data set that was evaluated.
        evaluation: of the predictor on `val_set`.
        progress: show bars on stderr.

    Raises:
        InputError: an image cannot be read.
    """
    metrics = evaluation.compute()
    mistakes = count_mistakes(val_set, evaluation.results)
    audit = audit_labels(predictor, train_set, progress=progress)
    shown = {"AP50": "ap50", "AP (0.50:0.95)": "ap", "AP75": "ap75", "AR100": "ar100"}
    table = f"<pre>{html.escape(metrics_table(metrics))}</pre>"
    sections = [
        heading(path.parent.name, {title: metrics[key] for title, key in shown.items()}),
        curves_section(path.parent / "metrics.jsonl", {"AP50": "ap50", "AP": "ap"}),
        section(
            f"Per class ({val_set.name}, {len(val_set)} images)",
            f"{table}<div class=row>{_plots(evaluation, mistakes, val_set.class_names)}</div>",
        ),
        images_section(
            f"Images with the most mistakes (left: labels, right: detections above {SHOWN_SCORE})",
            worst_images(evaluation, mistakes, val_set, NUM_WORST),
            wide=True,
        ),
        _anchors(predictor.decoder, audit),
        _label_suspects(audit, train_set),
        text_section("Label suspects: the list", list_of(audit.suspects[:NUM_LISTED], train_set)),
        text_section("Data", f"{describe(train_set)}\n{describe(val_set)}"),
        text_section("Config", to_yaml(config)),
    ]
    write_page(path, sections)


def _plots(evaluation: Evaluation, mistakes: Mistakes, class_names: tuple[str, ...]) -> str:
    recall, precision = evaluation.coco.precision_recall()
    names = [*class_names, BACKGROUND]
    return png(lambda file: plot_precision_recall(file, recall, precision, class_names)) + png(
        lambda file: plot_confusion(file, mistakes.confusion, names, title=CONFUSION_TITLE)
    )


def _anchors(decoder: Decoder, audit: LabelAudit) -> str:
    """Which anchors and scales found the objects of the training images."""
    scales = [anchors_wh.tolist() for anchors_wh in decoder.anchors_wh]
    anchors = [f"{width:g}x{height:g}" for scale in scales for width, height in scale]
    counts = [audit.answers.get(number, 0) for number in range(len(anchors))]
    plot = svg(
        lambda file: plot_bars(
            file, anchors, {"objects found": counts}, title="Objects found by each anchor", ylabel="objects"
        )
    )
    text = f"{sum(counts)} objects in {audit.num_images} training images were found."
    ends = list(itertools.accumulate(len(scale) for scale in scales))
    for stride, scale, end in zip(decoder.strides, scales, ends, strict=True):
        text += f" At stride {stride}: {sum(counts[end - len(scale) : end])}."
    return section("Which anchors and scales found objects", f"<p>{text}</p><div class=row>{plot}</div>")


def _label_suspects(audit: LabelAudit, train_set: DetectionDataset) -> str:
    shown = audit.suspects[:NUM_SUSPECTS]
    captions = [f"{rank}. {each.image_id}: {_claim(each)} ({each.surprise:.1f})" for rank, each in enumerate(shown, 1)]
    return images_section(
        "Label suspects: where labels and network disagree most",
        list(zip(pictures(train_set, shown), captions, strict=True)),
        text=f"{audit.num_images} training images were examined ({audit.num_unreadable} unreadable): "
        f"{len(audit.suspects)} suspects, here the first {len(shown)}. tools/doctor.py --audit RUN writes a list of "
        "all. Labels are white, the suspect is coloured. The number says how rare such a disagreement is: minus the "
        "natural logarithm of its share among the labels of the class.",
    )


def _claim(suspect: Suspect) -> str:
    """A suspect in words."""
    return {
        "missing": f"no label, the network sees {suspect.network}",
        "class": f"{suspect.label}, the network sees {suspect.network}",
        "place": f"{suspect.label}, the network does not see it",
    }[suspect.kind]
