"""Curves as SVG and images as data URIs, for a page that needs nothing else."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from madclip.evaluation.result import EvaluationResult, GalleryItem

# Okabe and Ito's colours are told apart with every kind of colour vision.
NORMAL, ANOMALOUS, TRUTH, CALLED = "#0072B2", "#D55E00", "#00D68F", "#FFB000"
INK, FAINT = "#1d2430", "#8a93a3"
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # Comes with matplotlib; the page puts its own, narrower font in its place.
    "font.size": 10,
    "axes.edgecolor": "#c3c9d4",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ebf0",
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def draw(name: str, paint: Callable[[Any], None], width: float = 4.6, height: float = 3.9) -> str:
    """An SVG of one pair of axes; `name` keeps the ids of figures on one page apart and the bytes repeatable."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE | {"svg.hashsalt": name, "svg.id": f"figure-{name}"}):
        # Fixed margins: a layout that is found by drawing doubles the time.
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(left=0.14, right=0.98, bottom=0.13, top=0.98)
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def curve(result: EvaluationResult, name: str) -> str | None:
    """The ROC (`roc`) or precision-recall (`pr`) curve with its band; None where one class is missing."""
    if name not in result.curves:
        return None
    data = result.curves[name]
    counts = result.counts

    def paint(axes: Any) -> None:
        axes.fill_between(data["grid"], *data["band"], color=NORMAL, alpha=0.16, linewidth=0, label=band_label(result))
        axes.plot(data["x"], data["y"], color=NORMAL, drawstyle="default" if name == "roc" else "steps-pre")
        if name == "roc":
            axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="chance")
        else:
            prevalence = result.n_abnormal / len(result.rows)
            axes.axhline(
                prevalence,
                color=FAINT,
                linewidth=1,
                linestyle=(0, (4, 3)),
                label=f"chance: prevalence {prevalence:.2f}",
            )
        if counts is not None and counts.sensitivity is not None and counts.specificity is not None:
            at = (
                (1 - counts.specificity, counts.sensitivity)
                if name == "roc"
                else (counts.sensitivity, counts.precision)
            )
            if None not in at:
                axes.plot(*at, "o", color=ANOMALOUS, markersize=7, label="the fixed threshold", zorder=5)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.set_xlabel("false-positive rate (1 − specificity)" if name == "roc" else "recall (sensitivity)")
        axes.set_ylabel("sensitivity" if name == "roc" else "precision")
        axes.legend(loc="lower right" if name == "roc" else "lower left", fontsize=9)

    return draw(name, paint)


def band_label(result: EvaluationResult) -> str:
    """What the band is."""
    return f"{result.level:.0%} band, point by point"


def histogram(result: EvaluationResult) -> str:
    """Scores of both classes and the fixed threshold."""
    scores = np.array([row.score for row in result.rows])
    labels = np.array([row.label for row in result.rows])
    low, high = float(scores.min()), float(scores.max())
    edges = np.linspace(low, high if high > low else low + 1e-6, 31)

    def paint(axes: Any) -> None:
        for label, colour, word in ((0, NORMAL, "normal"), (1, ANOMALOUS, "abnormal")):
            mine = scores[labels == label]
            if mine.size:
                weights = np.full(mine.size, 1 / mine.size)
                axes.hist(mine, edges, weights=weights, color=colour, alpha=0.55, label=f"{word} ({mine.size})")
        if result.threshold is not None:
            axes.axvline(result.threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="the fixed threshold")
        axes.set(xlabel="image score", ylabel="share of the class", ylim=(0, axes.get_ylim()[1] * 1.25))
        axes.locator_params(axis="x", nbins=6)
        axes.legend(fontsize=9)

    return draw("histogram", paint)


def reliability(result: EvaluationResult) -> str | None:
    """How often images of a stated probability are abnormal; None without probabilities."""
    data = result.curves.get("reliability")
    if data is None:
        return None
    mean, frequency, count = (np.array(data[key]) for key in ("mean", "frequency", "count"))
    low, high = np.array(data["band"])

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="as stated")
        axes.errorbar(
            mean,
            frequency,
            yerr=[frequency - low, high - frequency],
            color=NORMAL,
            fmt="o-",
            markersize=4,
            elinewidth=1,
        )
        for x, top, n in zip(mean, high, count, strict=True):
            axes.annotate(
                f"{n:.0f}", (x, top), (0, 3), textcoords="offset points", ha="center", fontsize=8, color=FAINT
            )
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.08), xlabel="stated probability", ylabel="share that is abnormal")
        axes.legend(loc="upper left", fontsize=9)

    return draw("reliability", paint)


def contours(item: GalleryItem, threshold: float | None) -> NDArray[np.uint8] | None:
    """The image, twice as large, with the outlines of what is marked and of what the map calls anomalous."""
    from PIL import Image, ImageColor
    from scipy.ndimage import binary_erosion

    if item.image is None:
        return None
    size = item.image.shape[1] * 2, item.image.shape[0] * 2
    canvas = np.array(Image.fromarray(item.image).resize(size, Image.Resampling.BICUBIC))
    called = None if item.map is None or threshold is None else item.map
    for area, cut, colour in ((item.mask, 0.5, TRUTH), (called, threshold, CALLED)):
        if area is None:
            continue
        grown = np.asarray(Image.fromarray(area.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)) >= cut
        inner = binary_erosion(grown, iterations=3)
        canvas[grown & ~inner] = ImageColor.getrgb(colour)
        # A dark line along it keeps the outline visible on a bright lesion.
        canvas[inner & ~binary_erosion(inner)] = ImageColor.getrgb(INK)
    return canvas


def data_uri(pixels: NDArray[Any], *, lossless: bool = False) -> str:
    """An image of uint8 [h, w, 3] or bool [h, w] inside the page. Nothing but pixels is in it."""
    from PIL import Image

    out = io.BytesIO()
    image = Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == np.bool_ else pixels)
    if lossless:
        image.save(out, "PNG", optimize=True)
    else:
        image.save(out, "JPEG", quality=86)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(out.getvalue()).decode()}"
