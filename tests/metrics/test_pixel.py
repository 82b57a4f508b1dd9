from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from madclip.errors import DataError
from madclip.metrics.pixel import (
    PixelHistogram,
    dice,
    keys,
    pixel_auroc,
    region_weights,
    surface_dice,
)


def draw(seed, *, levels=None, count=5, sharp=2.0):
    """Maps and masks of different sizes; one in three images normal; values on `levels` steps, or continuous."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for index in range(count):
        shape = (int(rng.integers(6, 16)), int(rng.integers(6, 16)))
        mask = rng.random(shape) < (0.0 if index % 3 == 0 else 0.15)
        scores = 1 / (1 + np.exp(-sharp * (rng.normal(size=shape) + mask)))
        maps.append((np.round(scores * levels) / levels if levels else scores).astype(np.float32))
        masks.append(mask)
    return maps, masks


def histogram(maps, masks, **sizes):
    counted = PixelHistogram(**sizes)
    for scores, mask in zip(maps, masks, strict=True):
        counted.update(scores, mask)
    return counted


def regions_by_flood(mask):
    """8-connected regions, by a flood that knows nothing of scipy."""
    left = {tuple(p) for p in np.argwhere(mask)}
    regions = []
    while left:
        edge = [left.pop()]
        region = set(edge)
        while edge:
            y, x = edge.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            region |= near
            edge += near
        regions.append(region)
    return regions


def aupro_by_brute_force(maps, masks, limit=0.3):
    """Threshold by threshold from the definition: false-positive rate and mean overlap, then the area by hand."""
    pairs = list(zip(maps, masks, strict=True))
    regions = [(scores, region) for scores, mask in pairs for region in regions_by_flood(mask)]
    regions = [scores[tuple(np.transpose(sorted(region)))] for scores, region in regions]
    outside = np.concatenate([scores[~mask] for scores, mask in pairs])
    points = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([scores.ravel() for scores in maps]))[::-1]:
        rate = np.mean(outside >= threshold)
        overlap = np.mean([np.mean(region >= threshold) for region in regions])
        points.append((rate, overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        right = min(x1, limit)
        height = y1 if x1 == right else y0 + (y1 - y0) * (right - x0) / (x1 - x0)
        area += (right - x0) * (y0 + height) / 2
    return area / limit


@given(st.integers(0, 1000), st.sampled_from([None, 1, 7, 255]))
@settings(max_examples=40, deadline=None)
def test_streaming_is_exact_when_every_value_has_a_bucket(seed, levels):
    maps, masks = draw(seed, levels=levels)
    maps = [np.float32(0.49) + np.float32(0.01) * scores for scores in maps]
    counted = histogram(maps, masks, limit=1 << 20, pixels=500)
    flat, truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])
    assert counted.shift == 0
    assert counted.auroc().value == pytest.approx(roc_auc_score(truth, flat), abs=1e-9)
    assert counted.average_precision().value == pytest.approx(average_precision_score(truth, flat), abs=1e-9)
    assert counted.auroc().bound < 1e-12
    assert pixel_auroc(maps, masks) == pytest.approx(roc_auc_score(truth, flat), abs=1e-9)


@given(st.integers(0, 1000), st.sampled_from([None, 3, 40]), st.sampled_from([2, 9, 64, 1000, 30000]))
@settings(max_examples=30, deadline=None)
def test_streaming_stays_within_its_bound(seed, levels, limit):
    maps, masks = draw(seed, levels=levels)
    counted = histogram(maps, masks, limit=limit, pixels=300)
    flat, truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])
    exact = roc_auc_score(truth, flat), average_precision_score(truth, flat), aupro_by_brute_force(maps, masks)
    for got, right in zip((counted.auroc(), counted.average_precision(), counted.aupro()), exact, strict=True):
        assert abs(got.value - right) <= got.bound + 1e-12


def test_few_buckets_have_a_bound_that_says_so():
    maps, masks = draw(1)
    coarse, fine = (histogram(maps, masks, limit=limit).auroc().bound for limit in (16, 1 << 20))
    assert coarse > 1e-3 > fine


def test_a_bucket_of_one_value_is_exact_however_coarse():
    maps, masks = draw(2, levels=4)
    counted = histogram(maps, masks, limit=64)
    assert counted.auroc().bound < 1e-12
    assert counted.shift > 10
    assert counted.aupro().bound < 1e-12


@pytest.mark.parametrize("levels", [None, 5, 50])
@pytest.mark.parametrize("sharp", [0.3, 3.0])
def test_aupro_equals_brute_force(levels, sharp):
    maps, masks = draw(11, levels=levels, sharp=sharp)
    maps = [np.float32(0.49) + np.float32(0.01) * scores for scores in maps]
    got = histogram(maps, masks, limit=1 << 20).aupro()
    assert got.value == pytest.approx(aupro_by_brute_force(maps, masks), abs=1e-9)
    assert got.bound < 1e-12


def test_a_small_region_counts_as_much_as_a_large_one():
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = mask[16, 16] = True
    large, small = (mask & (np.arange(20)[:, None] < 14)), (mask & (np.arange(20)[:, None] > 14))
    for part in (large, small):
        assert histogram([part.astype(np.float32)], [mask]).aupro().value == pytest.approx(
            0.5 + 0.5 * 0.15, abs=1e-12
        ), "one of two regions at no false positive, then the diagonal to (1, 1)"


def test_regions_touch_by_corners():
    mask = np.eye(4, dtype=bool)
    assert np.allclose(region_weights(mask), 0.25)
    mask[0, 3] = True
    assert sorted(region_weights(mask)) == pytest.approx([0.25] * 4 + [1.0])


@given(st.integers(0, 1000), st.randoms(use_true_random=False), st.sampled_from([64, 1 << 14]))
@settings(max_examples=30, deadline=None)
def test_order_and_batches_do_not_matter(seed, random, limit):
    maps, masks = draw(seed)
    order = random.sample(range(len(maps)), len(maps))
    one = histogram(maps, masks, limit=limit, pixels=1)
    other = histogram([maps[i] for i in order], [masks[i] for i in order], limit=limit, pixels=10**6)
    assert one.auroc().value == pytest.approx(other.auroc().value, abs=1e-12)
    assert one.aupro().value == pytest.approx(other.aupro().value, abs=1e-12)
    assert one.average_precision().value == pytest.approx(other.average_precision().value, abs=1e-12)


def test_a_monotone_map_changes_nothing():
    maps, masks = draw(4)
    moved = [np.sqrt(scores.astype(np.float64)) for scores in maps]
    assert pixel_auroc(moved, masks) == pytest.approx(pixel_auroc(maps, masks), abs=1e-6)


def test_every_pixel_equal_is_chance_exactly():
    mask = np.zeros((8, 8), bool)
    mask[2:4] = True
    got = histogram([np.full((8, 8), 0.3, np.float32)] * 3, [mask] * 3)
    assert got.auroc().value == 0.5
    assert got.auroc().bound < 1e-12
    assert got.average_precision().value == pytest.approx(0.25)
    assert got.aupro().value == pytest.approx(0.15)


@given(st.lists(st.floats(0, 1, width=32, exclude_min=True, exclude_max=True), min_size=2, max_size=50))
def test_keys_order_as_values_do(values):
    scores = np.array([*values, 0.5, np.nextafter(np.float32(0.5), np.float32(0)), 1e-45], np.float32)
    order = np.argsort(scores, kind="stable")
    steps = np.diff(keys(scores)[order].astype(np.int64))
    assert np.array_equal(np.sign(np.diff(scores[order])), np.sign(steps))


def test_maps_that_are_sure_of_themselves_are_within_a_ten_thousandth():
    rng = np.random.default_rng(0)
    mask = np.zeros((200, 200), bool)
    mask[50:90, 60:110] = True
    maps = [(1 / (1 + np.exp(-8 * (rng.normal(size=mask.shape) + mask)))).astype(np.float32) for _ in range(5)]
    counted = histogram(maps, [mask] * 5)
    exact = pixel_auroc(maps, [mask] * 5)
    assert abs(counted.auroc().value - exact) <= counted.auroc().bound + 1e-12
    assert counted.auroc().bound < 1e-6
    assert counted.shift > 0


def test_zero_and_minus_zero_are_one_value():
    mask = np.array([[True, False]])
    for left, right in ((0.0, -0.0), (-0.0, 0.0)):
        assert histogram([np.array([[left, right]])], [mask]).auroc().value == 0.5
    assert histogram([np.array([[1.0, 1.0]])], [mask]).auroc().value == 0.5
    assert histogram([np.array([[1.0, np.nextafter(np.float32(1), np.float32(0))]])], [mask]).auroc().value == 1.0
    assert histogram([np.array([[1.0, 0.0]])], [mask]).auroc().value == 1.0
    assert histogram([np.array([[0.0, 1e-30]])], [mask]).auroc().value == 0.0


def test_what_is_missing_is_said():
    assert "no mask was given" in PixelHistogram().auroc().reason
    normal = np.zeros((4, 4), bool)
    for counted in (histogram([normal + 0.5], [normal]), histogram([normal + 0.5], [None])):
        for got in (counted.auroc(), counted.average_precision(), counted.aupro()):
            assert got.value is None
            assert "no mask marks" in got.reason
    assert histogram([normal + 0.5], [~normal]).auroc().value is None
    assert histogram([normal + 0.5], [~normal]).average_precision().value == 1.0
    assert pixel_auroc([], []) is None


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.5, float("inf")])
def test_a_map_that_is_no_map_is_named(value):
    scores = np.full((4, 4), 0.5)
    scores[1, 2] = value
    with pytest.raises(DataError, match=r"scan-7\.png: the anomaly map has values"):
        PixelHistogram().update(scores, None, "scan-7.png")
    with pytest.raises(DataError, match=r"scan-7\.png: .* sizes must be the same"):
        PixelHistogram().update(np.zeros((4, 4)), np.zeros((5, 4), bool), "scan-7.png")


def test_a_rounding_error_is_no_error():
    mask = np.array([[True, False]])
    assert histogram([np.array([[1 + 2e-7, -1e-8]])], [mask]).auroc().value == 1.0


def test_dice_by_hand():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert dice(a, b) == surface_dice(a, b) == 1.0
    a[0] = True
    assert dice(a, b) == surface_dice(a, b) == 0.0
    b[:2] = True
    assert dice(a, b) == pytest.approx(2 * 4 / 12)


def surface_dice_by_brute_force(a, b, tolerance):
    def outline(mask):
        padded = np.pad(mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(mask & ~inner)

    a, b = outline(a), outline(b)
    far = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return (np.sum(far.min(1) <= tolerance) + np.sum(far.min(0) <= tolerance)) / (len(a) + len(b))


@pytest.mark.parametrize("tolerance", [0, 1, 2, 2.5])
def test_surface_dice_equals_brute_force(tolerance):
    y, x = np.mgrid[:40, :50]
    truth = (y - 18) ** 2 + (x - 20) ** 2 < 100
    found = ((y - 20) ** 2 + (x - 23) ** 2 < 80) | ((y > 30) & (x > 44))
    assert surface_dice(found, truth, tolerance) == pytest.approx(
        surface_dice_by_brute_force(found, truth, tolerance), abs=1e-12
    )
    assert surface_dice(truth, truth, tolerance) == 1.0
