"""Pixel-level metrics: exact functions, and a histogram that holds any number of maps in constant memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from madclip.errors import DataError
from madclip.metrics.image import Estimate, mann_whitney

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Mask = NDArray[np.bool_]

FPR_LIMIT = 0.3
"""AUPRO is integrated up to this false-positive rate, as MVTec AD does (Bergmann et al., IJCV 2021, section 5.2)."""

ROUNDING = 1e-6
"""How far outside 0..1 a map may be before it is refused."""

NO_MASKS = "no mask was given"
NO_LESION = "no mask marks an abnormal pixel"
NO_NORMAL = "no mask leaves a normal pixel"


def check_map(scores: NDArray[np.floating], mask: Mask | None, name: str = "map") -> NDArray[np.float32]:
    """An anomaly map as float32 [H, W], once it is known to be one and to fit its mask.

    Raises:
        DataError: The map has a value that is not a number in [0, 1], or another size than its mask.
    """
    if mask is not None and mask.shape != scores.shape:
        raise DataError(f"{name}: the anomaly map is {scores.shape} and the mask {mask.shape}; sizes must be the same")
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    if not scores.size or (scores.min() >= 0 and scores.max() <= 1):
        return scores
    # Interpolation in float32 may overshoot by a rounding error.
    if scores.min() >= -ROUNDING and scores.max() <= 1 + ROUNDING:
        return np.asarray(np.clip(scores, 0, 1), dtype=np.float32)
    raise DataError(f"{name}: the anomaly map has values that are not numbers between 0 and 1")


def pixel_auroc(maps: Iterable[NDArray[np.floating]], masks: Iterable[Mask]) -> float | None:
    """AUROC over all pixels of all maps, exactly, by ranks. Sorts every pixel in memory: see `PixelHistogram`.

    Args:
        maps: each [H, W] in 0..1; sizes may differ.
        masks: each [H, W], True where abnormal.

    Returns:
        None where one kind of pixel is missing.

    Raises:
        DataError: A map has values that are not numbers in 0..1, or another size than its mask.
    """
    inside: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    outside: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    for index, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        lesion = np.asarray(mask, dtype=np.bool_)
        checked = check_map(np.asarray(scores), lesion, f"map {index}")
        inside.append(checked[lesion])
        outside.append(checked[~lesion])
    return mann_whitney(np.concatenate(inside), np.concatenate(outside))


def region_weights(mask: Mask) -> NDArray[np.float64]:
    """For each abnormal pixel, in row order, one over the size of its region (8-connected): sums to the regions."""
    from scipy.ndimage import label

    regions, _ = label(mask, structure=np.ones((3, 3), dtype=int))
    member = regions[mask]
    return np.asarray(1.0 / np.bincount(member)[member]) if member.size else np.zeros(0)


def keys(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Integers that rise with values in (0, 1) and are equal only where these are.

    Up to 0.5 the bits of the float32, which rise with it; from there on the bits of its distance to 1, mirrored.
    That distance is exact (Sterbenz), so a map that is sure of itself keeps its order near 1 as it does near 0.
    """
    rest = np.float32(1) - scores
    return np.where(scores < 0.5, scores.view(np.uint32), np.uint32(0x7E000000) - rest.view(np.uint32))


class PixelHistogram:
    """AUROC, average precision and AUPRO over all pixels of any number of maps, in constant memory.

    Pixels are counted by integer keys that rise with the value and are fine near 0 and near 1 alike (`keys`), without
    their last `shift` bits. `shift` starts at 0, where every value has a bucket of its own and nothing is lost, and
    grows when the range of values seen needs more than `limit` buckets. A bucket whose pixels all have one value is
    known and exact also then. Only the order of unlike values within one bucket is unknown; what it could change is
    the bound that is reported beside the value.

    Args:
        limit: Largest number of buckets; each takes 28 bytes.
        pixels: Pixels gathered before they are counted.
    """

    _EMPTY, _MIXED = 2**32 - 2, 2**32 - 1

    def __init__(self, limit: int = 1 << 22, pixels: int = 1 << 22) -> None:
        self.limit, self.pixels = limit, pixels
        self.maps, self.regions = 0, 0
        self.shift, self.origin = 0, 0
        self._normal = np.zeros(0, np.int64)
        self._lesion = np.zeros(0, np.int64)
        self._weight = np.zeros(0, np.float64)
        self._single = np.zeros(0, np.uint32)
        # The values 1 and 0 are far from all others in keys: normal, lesion and weight of their own buckets.
        self._ends = np.zeros((2, 3))
        self._pending: list[tuple[NDArray[np.uint32], NDArray[np.float64] | None]] = []
        self._gathered = 0

    def update(self, scores: NDArray[np.floating], mask: Mask | None = None, name: str = "map") -> None:
        """Add one map [H, W] in 0..1 with its mask [H, W]; None for a normal image.

        Raises:
            DataError: The map has values that are not numbers in 0..1, or another size than its mask.
        """
        checked = check_map(scores, mask, name)
        self.maps += 1
        if mask is None or not mask.any():
            self._gather(checked.ravel(), None)
            return
        weights = region_weights(mask)
        self.regions += round(float(weights.sum()))
        self._gather(checked[~mask], None)
        self._gather(checked[mask], weights)

    def _gather(self, scores: NDArray[np.float32], weights: Floats | None) -> None:
        for row, end in enumerate((1.0, 0.0)):
            at = scores == end
            if at.any():
                count = np.count_nonzero(at)
                self._ends[row] += (count, 0, 0) if weights is None else (0, count, float(weights[at].sum()))
                scores, weights = scores[~at], None if weights is None else weights[~at]
        if scores.size:
            self._pending.append((keys(scores), weights))
            self._gathered += scores.size
        if self._gathered >= self.pixels:
            self._count()

    def _count(self) -> None:
        """Move what was gathered into the buckets."""
        if not self._pending:
            return
        self._cover(min(int(b.min()) for b, _ in self._pending), max(int(b.max()) for b, _ in self._pending))
        size = len(self._normal)
        normal = [bits for bits, weights in self._pending if weights is None]
        lesion = [(bits, weights) for bits, weights in self._pending if weights is not None]
        if normal:
            self._normal += np.bincount(self._note(np.concatenate(normal)), minlength=size)
        if lesion:
            index = self._note(np.concatenate([bits for bits, _ in lesion]))
            self._lesion += np.bincount(index, minlength=size)
            self._weight += np.bincount(index, np.concatenate([weights for _, weights in lesion]), size)
        self._pending, self._gathered = [], 0

    def _note(self, bits: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Buckets of these bits; remembers the one value of a bucket, or that it has several."""
        index = (bits >> self.shift).astype(np.int64) - self.origin
        if self.shift:
            low = (bits & ((1 << self.shift) - 1)).astype(np.uint32)
            fresh = self._single[index] == self._EMPTY
            self._single[index[fresh]] = low[fresh]
            self._single[index[self._single[index] != low]] = self._MIXED
        return index

    def _cover(self, low: int, high: int) -> None:
        """Make the buckets reach from the lowest to the highest bits, coarser where they would be too many."""
        if len(self._normal):
            low = min(low, self.origin << self.shift)
            high = max(high, ((self.origin + len(self._normal)) << self.shift) - 1)
        shift = self.shift
        while (high >> shift) - (low >> shift) >= self.limit:
            shift += 1
        self._coarsen(shift)
        origin, size = low >> shift, (high >> shift) - (low >> shift) + 1
        before = self.origin - origin if len(self._normal) else 0
        pad = (before, size - before - len(self._normal))
        self._normal, self._lesion = np.pad(self._normal, pad), np.pad(self._lesion, pad)
        self._weight = np.pad(self._weight, pad)
        fill = self._EMPTY if shift else 0
        self._single = np.pad(self._single, pad, constant_values=fill)
        self.origin = origin

    def _coarsen(self, shift: int) -> None:
        """Join neighbouring buckets until each spans 2^shift values."""
        while self.shift < shift:
            if self.shift == 0:
                self._single = np.where(self._normal + self._lesion > 0, 0, self._EMPTY).astype(np.uint32)
            odd = self.origin % 2
            pad = (odd, (odd + len(self._normal)) % 2)
            single = np.pad(self._single, pad, constant_values=self._EMPTY).reshape(-1, 2).astype(np.int64)
            left, right = single[:, 0], single[:, 1]
            high = np.where(right < self._EMPTY, right + (1 << self.shift), right)
            joined = np.where(left == self._EMPTY, high, np.where(right == self._EMPTY, left, self._MIXED))
            self._single = joined.astype(np.uint32)
            self._normal = np.pad(self._normal, pad).reshape(-1, 2).sum(1)
            self._lesion = np.pad(self._lesion, pad).reshape(-1, 2).sum(1)
            self._weight = np.pad(self._weight, pad).reshape(-1, 2).sum(1)
            self.shift, self.origin = self.shift + 1, self.origin // 2

    def _falling(self) -> tuple[Floats, Floats, Floats, Mask]:
        """Normal pixels, abnormal pixels and region weight of each bucket from high to low; whether it is exact."""
        self._count()
        held = np.flatnonzero(self._normal + self._lesion)[::-1]
        exact = self._single[held] != self._MIXED if self.shift else np.ones(len(held), np.bool_)
        columns = [counts[held].astype(np.float64) for counts in (self._normal, self._lesion, self._weight)]
        one, zero = self._ends
        normal, lesion, weight = (np.hstack([one[i], columns[i], zero[i]]) for i in range(3))
        return normal, lesion, weight, np.hstack([True, exact, True])

    def _missing(self, normal: Floats, lesion: Floats) -> str:
        if not self.maps:
            return NO_MASKS
        return NO_LESION if not lesion.sum() else NO_NORMAL if not normal.sum() else ""

    def auroc(self) -> Estimate:
        """AUROC over all pixels; the bound is half of the pairs that share a bucket without a common value."""
        normal, lesion, _, exact = self._falling()
        if reason := self._missing(normal, lesion):
            return Estimate(None, reason=reason)
        pairs = normal.sum() * lesion.sum()
        below = normal.sum() - np.cumsum(normal)
        value = float(np.sum(lesion * (below + normal / 2)) / pairs)
        return Estimate(value, bound=float(np.sum((normal * lesion)[~exact]) / 2 / pairs) + rounding(len(normal)))

    def average_precision(self) -> Estimate:
        """Average precision over all pixels; the bound is what the order within buckets could change at most."""
        normal, lesion, _, exact = self._falling()
        if not lesion.sum():
            return Estimate(None, reason=self._missing(normal, lesion))
        hits, false = np.cumsum(lesion), np.cumsum(normal)
        share = lesion / lesion.sum()
        value = float(np.sum(share * hits / np.maximum(hits + false, 1)))
        # Inside a bucket the first pixel may be anomalous and all normal ones last, or the other way round.
        some = ~exact & (lesion > 0)
        best = hits / np.maximum(hits + false - normal, 1)
        first = hits - lesion + 1
        tied, worst = hits / np.maximum(hits + false, 1), first / (first + false)
        bound = np.sum((share * np.maximum(best - tied, tied - worst))[some])
        return Estimate(value, bound=float(bound) + rounding(len(normal)))

    def aupro(self, limit: float = FPR_LIMIT) -> Estimate:
        """Area under the per-region overlap up to a false-positive rate, divided by that rate.

        The overlap at a threshold is the mean over all regions (8-connected) of the share that is found; the rate is
        over the normal pixels of all images.
        """
        normal, lesion, weight, exact = self._falling()
        if reason := self._missing(normal, lesion):
            return Estimate(None, reason=reason)
        rate = np.append(0.0, np.cumsum(normal) / normal.sum())
        overlap = np.append(0.0, np.cumsum(weight) / weight.sum())
        value = area_to(rate, overlap, limit)
        # The unknown curve is monotone, so inside a bucket it cannot leave the rectangle of the bucket's two corners.
        width = np.diff(np.minimum(rate, limit))
        loss = np.where(rate[1:] > limit, 1.0, 0.5)
        bound = np.sum((width * np.diff(overlap) * loss)[~exact]) / limit
        return Estimate(value, bound=float(bound) + rounding(len(normal)))


def rounding(terms: int) -> float:
    """The largest rounding error of a float64 sum of so many terms of at most 1."""
    return float(4 * np.finfo(np.float64).eps * (np.log2(terms + 2) + 4))


def area_to(x: Floats, y: Floats, limit: float) -> float:
    """Area under the polygon through the points (x, y) from x = 0 to x = limit, divided by limit."""
    inside = x <= limit
    xs, ys = x[inside], y[inside]
    if xs[-1] < limit:
        xs, ys = np.append(xs, limit), np.append(ys, np.interp(limit, x, y))
    return float(np.trapezoid(ys, xs) / limit)


def dice(predicted: Mask, mask: Mask) -> float:
    """2 |A and B| / (|A| + |B|) of two masks [H, W]; 1 where both are empty."""
    total = int(predicted.sum()) + int(mask.sum())
    return 2 * int((predicted & mask).sum()) / total if total else 1.0


def surface_dice(predicted: Mask, mask: Mask, tolerance: float = 2.0) -> float:
    """Normalised surface Dice: the share of both outlines that lies within a tolerance of the other outline.

    Nikolov et al., JMIR 2021;23:e26151, with outline pixels as MONAI takes them (a mask without its erosion by the
    4-neighbourhood, pixels beyond the border counting as outside).

    Args:
        predicted: [H, W].
        mask: [H, W].
        tolerance: Pixels, Euclidean.

    Returns:
        1 where both are empty, 0 where one is.
    """
    from scipy.ndimage import binary_erosion
    from scipy.spatial import KDTree

    if not predicted.any() or not mask.any():
        return float(predicted.any() == mask.any())
    ours, theirs = (np.argwhere(m & ~binary_erosion(m)) for m in (predicted, mask))
    near = tolerance + 1e-6  # KDTree takes only what is strictly nearer.
    found = [
        np.isfinite(KDTree(b).query(a, distance_upper_bound=near)[0]).sum() for a, b in ((ours, theirs), (theirs, ours))
    ]
    return float(sum(found) / (len(ours) + len(theirs)))
