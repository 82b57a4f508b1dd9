"""One self-contained HTML page from an `EvaluationResult`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.files import write_whole
from madclip.heatmap import heat
from madclip.report import figures
from madclip.report.templates import computed, template

if TYPE_CHECKING:
    from datetime import datetime

    from madclip.evaluation.result import EvaluationResult, GalleryItem
    from madclip.metrics.image import Estimate

METRICS = {
    "image_auroc": ("Image AUROC", "chance that an abnormal image scores above a normal one; 0.5 is no skill"),
    "image_auroc_bootstrap": ("Image AUROC, bootstrap", "the same value with another kind of interval"),
    "patient_auroc": ("Patient AUROC", "the first over patients, each by its highest score"),
    "image_ap": ("Image average precision", "no skill is the prevalence: {prevalence:.3f} here"),
    "sensitivity": ("Sensitivity", "abnormal images found at the fixed threshold"),
    "specificity": ("Specificity", "normal images left alone at the fixed threshold"),
    "f1": ("F1", "of sensitivity and precision at the fixed threshold; depends on the prevalence"),
    "brier": ("Brier score", "squared error of the probability; 0 is best"),
    "ece": ("Calibration error", "mean distance of stated probability and frequency (ECE, 10 bins); 0 is best"),
    "pixel_auroc": ("Pixel AUROC", "over all pixels of all images; easy pixels dominate it"),
    "pixel_ap": ("Pixel average precision", "over all pixels of all images"),
    "aupro": ("AUPRO", "mean overlap per region up to a false-positive rate of 0.3, divided by 0.3"),
    "dice": ("Dice", "mean over images with a lesion, at the fixed threshold of maps; 1 is best"),
    "patient_dice": ("Patient Dice", "the same, averaged within each patient first"),
    "surface_dice": ("Surface Dice", "share of outlines within 2 pixels of each other, same images; 1 is best"),
    "false_area": ("False area", "mean share of normal pixels that the map calls anomalous; 0 is best"),
}
CARDS = ("image_auroc", "sensitivity", "specificity", "pixel_auroc", "aupro", "dice", "image_ap", "brier", "f1")
"""In order of interest: the page opens with the first six that have a value."""
VERDICTS = ("normal", "uncertain", "anomalous")


def write_report(
    result: EvaluationResult,
    out_html: Path | str,
    *,
    title: str = "Evaluation",
    detector: str | None = None,
    date: datetime | None = None,
) -> Path:
    """Write the page; a file that is there is replaced once the new one is complete.

    Names of images are shown as `result` has them (file names relative to the data root), those of scanner files not at
    all: the number of the row stands in their place. Patients are counted and
    not named, and nothing from file headers is in the page.

    Args:
        result: What was measured.
        out_html: Where the page goes.
        title: Its heading.
        detector: What to call the detector at the top, for example its folder; what it was fitted with stands there
            in any case.
        date: When it was measured; None takes what the result says, or else now.

    Returns:
        The path written.

    Raises:
        OSError: The file cannot be written there.
    """
    path = Path(out_html)
    write_whole(path, render_report(result, title=title, detector=detector, date=date))
    return path


def render_report(
    result: EvaluationResult,
    *,
    title: str = "Evaluation",
    detector: str | None = None,
    date: datetime | None = None,
) -> str:
    """The page as text; arguments as in `write_report`."""
    from markupsafe import Markup

    drawn = {
        "ROC curve": figures.curve(result, "roc"),
        "Precision and recall": figures.curve(result, "pr"),
        "Scores": figures.histogram(result),
        "Reliability": figures.reliability(result),
    }
    shown = [item.map for item in result.gallery if item.map is not None]
    span = (min(float(m.min()) for m in shown), max(float(m.max()) for m in shown)) if shown else None
    ramp = figures.data_uri(heat(np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(8, 0)))
    return template("template.html", number=number).render(
        title=title,
        result=result,
        measured=measured(result, detector, date),
        prevalence=result.n_abnormal / len(result.rows),
        cards=[metric(result, name) for name in CARDS if result.metrics[name].value is not None][:6],
        metrics=[metric(result, name) for name in METRICS if name in result.metrics],
        figures={heading: None if svg is None else Markup(svg) for heading, svg in drawn.items()},  # noqa: S704
        operating=operating_point(result),
        verdicts=verdicts(result),
        gallery=[gallery_item(item, span, result) for item in result.gallery],
        span=span,
        ramp=ramp,
        colour={
            "normal": figures.NORMAL,
            "anomalous": figures.ANOMALOUS,
            "truth": figures.TRUTH,
            "called": figures.CALLED,
        },
        provenance={k: v if isinstance(v, str) else json.dumps(v) for k, v in result.provenance.items()},
    )


def measured(result: EvaluationResult, detector: str | None, date: datetime | None) -> dict[str, str]:
    """What the page says at its top: which set, which detector, and when."""
    known = result.provenance
    learned: dict[str, Any] = known.get("fit") or {}
    said = [detector] if detector else []
    if "objective" in known:
        said.append(f"for {known['objective']!r}")
    if "backbone" in known:
        said.append(f"on {known['backbone']}")
    if "normal" in learned and "abnormal" in learned:
        said.append(f"learned from {learned['normal']} normal and {learned['abnormal']} abnormal images")
    when = known.get("measured") if date is None else None
    return {
        "Data set": str(known.get("data", "not recorded")),
        "Detector": ", ".join(said) or "not recorded",
        "Measured": str(when) if when else computed(date),
    }


def number(value: float | None, digits: int = 3) -> str:
    """A value as it is printed; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def metric(result: EvaluationResult, name: str) -> dict[str, Any]:
    """What a card or a row says of a metric."""
    estimate: Estimate = result.metrics[name]
    label, meaning = METRICS[name]
    return {
        "name": name,
        "label": label,
        "meaning": meaning.format(prevalence=result.n_abnormal / len(result.rows)),
        "estimate": estimate,
        "bound": f"{estimate.bound:.1g}" if estimate.bound > 1e-12 else "",
    }


def operating_point(result: EvaluationResult) -> list[tuple[str, str, float | None, str]]:
    """Rows of the table: name, meaning, value, of how many."""
    counts = result.counts
    if counts is None:
        return []
    called = counts.true_positive + counts.false_positive
    left = counts.true_negative + counts.false_negative
    silent = counts.true_negative / left if left else None
    found, alone = f"{counts.true_positive} of {result.n_abnormal}", f"{counts.true_negative} of {result.n_normal}"
    return [
        ("Sensitivity", "abnormal images that are found", counts.sensitivity, found),
        ("Specificity", "normal images that are left alone", counts.specificity, alone),
        ("PPV", "images called anomalous that are abnormal", counts.precision, f"{counts.true_positive} of {called}"),
        ("NPV", "images not called anomalous that are normal", silent, f"{counts.true_negative} of {left}"),
    ]


def verdicts(result: EvaluationResult) -> list[tuple[str, int, int]]:
    """Verdict, normal images and abnormal images that got it; empty without a calibration."""
    if all(row.verdict is None for row in result.rows):
        return []
    return [
        (word, *(sum(row.verdict == word and row.label == label for row in result.rows) for label in (0, 1)))  # type: ignore[misc]
        for word in VERDICTS
    ]


def gallery_item(item: GalleryItem, span: tuple[float, float] | None, result: EvaluationResult) -> dict[str, Any]:
    """One image with its four panels; a panel that cannot be drawn says why."""
    outlined = figures.contours(item, result.pixel_threshold)
    no_mask = "no mask" if item.row.label else "normal: nothing to mark"
    panels = [
        ("image", None if item.image is None else figures.data_uri(item.image), "no image"),
        ("map", None if item.map is None or not span else figures.data_uri(heat(item.map, *span)), "no map"),
        ("mask", None if item.mask is None else figures.data_uri(item.mask, lossless=True), no_mask),
        ("contour", None if outlined is None else figures.data_uri(outlined), "no image"),
    ]
    shape = next((a.shape for a in (item.image, item.map) if a is not None), (1, 1))
    name = f"image {result.rows.index(item.row)}" if item.row.scanner else item.row.name
    return {"row": item.row, "name": name, "groups": item.groups, "panels": panels, "ratio": f"{shape[1]} / {shape[0]}"}
