"""What is said of an image, and the loop that says it of many: below the class users meet, and below other methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch

from madclip.calibration.familiarity import Likeness
from madclip.data.arrays import read_pixels
from madclip.data.geometry import fit_pixels, restore_map
from madclip.data.readers import MIN_SIDE, read_image, read_many
from madclip.data.ref import ImageRef, as_ref
from madclip.data.tiles import Joined, corners, cut
from madclip.errors import DataError, MissingExtraError, RecipeError
from madclip.heatmap import captioned, png

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt
    from matplotlib.figure import Figure

    from madclip.calibration.calibration import Calibration, Verdict
    from madclip.data.arrays import ImageLike
    from madclip.recipe import View

Item = TypeVar("Item")
Decision = Literal["normal", "anomalous"]
BATCH, CPU_BATCH = 16, 4
"""Images that are computed at once; on a processor more take no less time each, and memory."""
READERS = 2
"""Threads that decode images while others are computed."""

SHARED = ("score", "threshold", "decision", "probability", "p_value", "verdict", "familiar", "note")
"""What a row takes from a prediction as it is."""

Scored: TypeAlias = "tuple[torch.Tensor, torch.Tensor, Sequence[Likeness]]"
Scorer: TypeAlias = Callable[[torch.Tensor], Scored]
"""Pixels [B, 3, S, S] in 0..1 -> scores [B], maps [B, S, S], and what each image is like."""


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a detector says of one image.

    Attributes:
        score: From 0 to 1, where 1 is anomalous; what every metric is computed on.
        anomaly_map: float32 [H, W] in 0..1 at the image's own size.
        size: Height and width of the image, pixels.
        source: The image's name, or None where it was an array.
        threshold: The score from which the detector decides for `anomalous`; None where it is not calibrated.
        decision: `anomalous` where the score reaches the threshold, else `normal`; None without a threshold.
        probability: Calibrated probability that the image is anomalous; None where the detector is not calibrated.
        p_value: Conformal p-value against the normal images of the calibration; None where there are none.
        verdict: `normal`, `anomalous` or `uncertain`, at the error rates that the calibration can promise; where the
            detector is not calibrated None, or `uncertain` of one that saw no abnormal image.
        familiar: Whether the image looks like anything in the shots; False warns of a wrong modality or view.
        modality: Which modality a joint detector took the image for; None where it has one alone, or was told.
        note: What a reader must know in a sentence or two: why decision and verdict differ, why there is neither, or
            what is odd about the file's grey values.
        grey_range: The rule by which the detector read the file's grey values, and by which it is shown.
    """

    score: float
    anomaly_map: npt.NDArray[np.float32]
    size: tuple[int, int]
    source: ImageRef | None = None
    threshold: float | None = None
    decision: Decision | None = None
    probability: float | None = None
    p_value: float | None = None
    verdict: Verdict | None = None
    familiar: bool = True
    modality: str | None = None
    note: str = ""
    grey_range: str = "file"

    def _said(self) -> tuple[tuple[str, Any], ...]:
        return tuple((f.name, getattr(self, f.name)) for f in fields(self) if f.name != "anomaly_map")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prediction):
            return NotImplemented
        return self._said() == other._said() and np.array_equal(self.anomaly_map, other.anomaly_map)

    def __hash__(self) -> int:
        return hash(self._said())

    def __repr__(self) -> str:
        low, high = float(self.anomaly_map.min(initial=1)), float(self.anomaly_map.max(initial=0))
        said = {name: f"{value:.4f}" if isinstance(value, float) else repr(value) for name, value in self._said()}
        said["source"] = repr(str(self.source)) if self.source else "None"
        told = ", ".join(f"{name}={value}" for name, value in said.items() if value not in ("None", "''"))
        return (
            f"Prediction({told}, anomaly_map=<{' x '.join(map(str, self.anomaly_map.shape))}, {low:.3f} to {high:.3f}>)"
        )

    @property
    def caption(self) -> str:
        """One line: score, decision or verdict, and a warning where the image is unlike the shots."""
        parts = [f"score {self.score:.3f}", self.decision or "no threshold"]
        if self.verdict is not None and self.verdict != self.decision:
            parts.append(f"verdict {self.verdict}")
        return ", ".join(parts if self.familiar else [*parts, "unlike the shots"])

    def plot(self) -> Figure:
        """The image with its heatmap and legend as a matplotlib figure; the heatmap alone where there is no file."""
        from matplotlib.figure import Figure

        picture = self._picture()
        figure = Figure(figsize=(picture.shape[1] / 100, picture.shape[0] / 100), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(picture)
        axes.set_axis_off()
        return figure

    def _repr_png_(self) -> bytes:
        """What a notebook shows of this prediction."""
        return png(self._picture())

    def _picture(self) -> npt.NDArray[np.uint8]:
        try:
            pixels = None if self.source is None else read_image(self.source, self.grey_range).pixels
        except DataError:
            pixels = None  # the file has gone since
        if pixels is not None and pixels.shape[1:] != self.anomaly_map.shape:
            pixels = None
        return captioned(pixels, self.anomaly_map, self.caption)


@dataclass(frozen=True)
class Row:
    """One line of every table, JSON object and API answer: what is said of an image, or why nothing is.

    Attributes:
        image: The image's path as it was given.
        frame: Index of the frame or slice in that file; None where the file is one image.
        axis: `coronal` or `sagittal` where a volume is cut so; None for axial slices and for all that is no volume.
        score: As in `Prediction`, like everything down to `note`; None where there was an error.
        threshold: See `Prediction`.
        decision: See `Prediction`.
        probability: See `Prediction`.
        p_value: See `Prediction`.
        verdict: See `Prediction`.
        familiar: See `Prediction`; None where there was an error.
        note: See `Prediction`.
        error: Why there is no score; None where there is one.
    """

    image: str
    frame: int | None = None
    axis: str | None = None
    score: float | None = None
    threshold: float | None = None
    decision: Decision | None = None
    probability: float | None = None
    p_value: float | None = None
    verdict: Verdict | None = None
    familiar: bool | None = None
    note: str = ""
    error: str | None = None

    @classmethod
    def of(cls, image: ImageRef | Path | str, result: Prediction | DataError) -> Row:
        """The row of a prediction, or of the error that its image gave."""
        ref = as_ref(image)
        if isinstance(result, DataError):
            return cls(str(ref.path), ref.frame, ref.axis or None, error=str(result))
        said = {name: getattr(result, name) for name in SHARED}
        return cls(str(ref.path), ref.frame, ref.axis or None, **said)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)


def to_frame(predictions: Iterable[Prediction]) -> Any:
    """The rows of predictions as a pandas DataFrame, without the maps; an image given as an array is called so.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise MissingExtraError("a DataFrame needs pandas: pip install pandas") from None
    columns = [field.name for field in fields(Row)]
    rows = [Row.of(p.source or "array", p).to_dict() for p in predictions]
    return pd.DataFrame(rows, columns=columns)


def judged(
    plain: Prediction,
    calibration: Calibration | None,
    why_uncalibrated: str = "",
    verdict: Verdict | None = None,
    *,
    units: str = "images",
) -> Prediction:
    """A prediction with what a calibration says of its score; nothing said contradicts another without a note.

    Args:
        plain: Score, map and familiarity.
        calibration: None where the detector has none.
        why_uncalibrated: The note to give then.
        verdict: And the verdict.
        units: What was calibrated on: `images`, or whole `series`.
    """
    if calibration is None:
        return replace(plain, verdict=verdict, note=_joined(plain.note, why_uncalibrated))
    probability = calibration.probability(plain.score)
    verdict = calibration.verdict(plain.score, familiar=plain.familiar)
    decision: Decision = "anomalous" if plain.score >= calibration.threshold else "normal"
    return replace(
        plain,
        threshold=calibration.threshold,
        decision=decision,
        probability=None if probability is None else float(probability),
        p_value=float(calibration.p_value(plain.score)),
        verdict=verdict,
        note=_joined(
            plain.note, _difference(decision, verdict, probability, familiar=plain.familiar), calibration.rests(units)
        ),
    )


def _joined(*notes: str) -> str:
    """Sentences one after the other."""
    said = [note for note in notes if note]
    return " ".join(note if note.endswith((".", "?")) or note is said[-1] else f"{note}." for note in said)


def _difference(decision: Decision, verdict: Verdict, probability: Any, *, familiar: bool) -> str:
    """Why what is said of a score may look contradictory, or an empty string where it does not."""
    if not familiar:
        return "The image is unlike every shot, so its score means little: is it the modality and view learned from?"
    if verdict == decision:
        if probability is None or (probability >= 0.5) == (decision == "anomalous"):
            return ""
        return "The probability is for the share of abnormal images among the shots; the decision is the threshold's."
    if verdict == "uncertain":
        return "At the error rates that the shots allow, the score fits normal and anomalous images alike, or neither."
    return f"The threshold is the operating point's; at the verdict's error rates the score speaks for {verdict}."


def predict_each(
    inputs: Iterable[ImageLike],
    view: View,
    score: Scorer,
    *,
    batch_size: int = BATCH,
    native: bool = True,
) -> Iterator[Prediction | DataError]:
    """One Prediction, or the error that its file gave, for each input in order; in constant memory.

    Args:
        inputs: Files, frames or arrays.
        view: How the backbone sees images.
        score: Scores, maps and likeness of a batch.
        batch_size: Images at once.
        native: False leaves maps as the backbone sees images (`madclip.data.tiles.map_size`), not brought back to the
            image's size.
    """

    def read(image: ImageLike) -> tuple[torch.Tensor, tuple[int, int], str]:
        note = ""
        if isinstance(image, (str, Path, ImageRef)):
            stored = read_image(image, view.grey_range)
            pixels, note = stored.pixels, stored.note or ""
        else:
            pixels = read_pixels(image, view)
        seen = torch.from_numpy(pixels) if view.tile else fit_pixels(pixels, view)
        return seen, (pixels.shape[1], pixels.shape[2]), note

    count = 1 if view.tile else batch_size
    for batch in _batched(read_many(inputs, read, workers=READERS, ahead=2 * count), count):
        seen = [found[0] for _, found in batch if not isinstance(found, DataError)]
        if seen:
            with torch.inference_mode():
                parts = _by_tiles(seen[0], view, score, batch_size) if view.tile else score(torch.stack(seen))
                scored = zip(*parts, strict=True)
        for item, found in batch:
            if isinstance(found, DataError):
                yield found
                continue
            value, one, like = next(scored)
            if not bool(torch.isfinite(value) & torch.isfinite(one).all()):
                yield DataError(f"{_named(item)}: the detector computed values that are not finite")
                continue
            source = as_ref(item) if isinstance(item, (str, Path, ImageRef)) else None
            final = restore_map(one, found[1], view) if native else one.numpy()
            plain = Prediction(float(value), final, found[1], source, grey_range=view.grey_range)
            taken = f"Taken for {like.modality!r}." if like.modality else ""
            note = _joined(taken, found[2])
            yield replace(plain, familiar=like.familiar, modality=like.modality, note=note)


def _by_tiles(pixels: torch.Tensor, view: View, score: Scorer, count: int) -> Scored:
    """What a scorer says of one image [3, H, W] in tiles, `count` at once: the highest score, and the joined map.

    The image is familiar where at least half of its tiles are.
    """
    size = (pixels.shape[1], pixels.shape[2])
    joined, square = Joined(size, view), replace(view, aspect="stretch")
    scores: list[torch.Tensor] = []
    known: list[bool] = []
    for part in _batched(corners(size, view), count):
        found, maps, like = score(torch.stack([fit_pixels(cut(pixels, corner, view), square) for corner in part]))
        joined.add(part, maps)
        scores.append(found)
        known += [one.familiar for one in like]
    return torch.cat(scores).max()[None], joined.map()[None], [Likeness(2 * sum(known) >= len(known))]


def score_batch(
    pixels: torch.Tensor, view: View, score: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [B] and maps [B, H, W] of a batch [B, 3, H, W] in 0..1 of any size, computed as the backbone sees it.

    Raises:
        DataError: The pixels have another shape, or values outside 0..1; or what was computed is not finite.
        RecipeError: Images are seen in tiles, of which a batch has no number that is known.
    """
    if view.tile:
        raise RecipeError("this detector sees images in tiles: give them to predict, or predict_iter, one by one")
    if pixels.ndim != 4 or pixels.shape[1] != 3 or min(pixels.shape[2:]) < MIN_SIDE:
        raise DataError(f"pixels of shape {list(pixels.shape)} are not [B, 3, H, W] of at least {MIN_SIDE} a side")
    # A comparison with NaN is false.
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise DataError("pixels [B, 3, H, W] have values outside 0..1 (or NaN): scale them")
    size = (pixels.shape[2], pixels.shape[3])
    if not len(pixels):
        return torch.zeros(0), torch.zeros(0, *size)
    scores, maps = score(torch.stack([fit_pixels(image, view) for image in pixels]))
    check_finite("the detector computed", scores, maps)
    if size == tuple(maps.shape[-2:]):
        return scores, maps
    return scores, torch.stack([torch.from_numpy(restore_map(one, size, view)) for one in maps])


def usual_batch(device: torch.device) -> int:
    """How many images are computed at once: few on a processor, whose caches they are to fit."""
    return CPU_BATCH if device.type == "cpu" else BATCH


def raised(result: Prediction | DataError) -> Prediction:
    """A prediction as it is.

    Raises:
        DataError: It is an error.
    """
    if isinstance(result, DataError):
        raise result
    return result


def check_finite(what: str, *computed: torch.Tensor) -> None:
    """Refuse pixels, scores, maps or pooled tokens with NaN or infinity: some engines turn them into harmless numbers.

    Args:
        what: What the error begins with: who gave or computed these.
        computed: Tensors of any shape.

    Raises:
        DataError: A value is not finite.
    """
    if not all(bool(torch.isfinite(part).all()) for part in computed):
        raise DataError(f"{what}: values that are not finite (NaN or infinity)")


def _named(item: ImageLike) -> str:
    return str(item) if isinstance(item, (str, Path, ImageRef)) else "an image given as an array"


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
