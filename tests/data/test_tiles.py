"""Large images in tiles: they cover every pixel, overlap, and their maps join to one that lies on the image."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from madclip.data.geometry import restore_map
from madclip.data.load import load_dataset
from madclip.data.tiles import Joined, corners, map_size, tile_size
from madclip.detector import MadCLIP
from madclip.errors import DataError, RecipeError
from madclip.evaluation.protocol import evaluate
from madclip.fitting import Run
from madclip.recipe import Recipe, View

SIDE = 320
"""Of the images that the tests write; tiles are 128 pixels."""


@given(st.integers(40, 900), st.integers(40, 900), st.integers(32, 400))
@settings(max_examples=60)
def test_tiles_cover_an_image_and_overlap_by_a_quarter(height, width, tile):
    size, view = (height, width), View(16, tile=tile)
    sides = tile_size(size, view)
    assert sides == (min(tile, height), min(tile, width))
    seen = np.zeros(size, int)
    for top, left in corners(size, view):
        assert 0 <= top <= height - sides[0]
        assert 0 <= left <= width - sides[1]
        seen[top : top + sides[0], left : left + sides[1]] += 1
    assert seen.min() >= 1
    for axis in range(2):
        starts = sorted({corner[axis] for corner in corners(size, view)})
        assert all(later - earlier <= 0.75 * sides[axis] + 1 for earlier, later in pairwise(starts))
    assert len(corners((8, 60_000), View(16, tile=1024))) < 100


@given(st.integers(64, 300), st.integers(64, 300))
@settings(max_examples=20)
def test_maps_of_tiles_join_without_a_seam(height, width):
    size, view = (height, width), View(32, tile=64)
    joined = Joined(size, view)
    places = corners(size, view)
    down, right = (view.size / side for side in tile_size(size, view))
    rows, columns = torch.meshgrid(*(torch.arange(view.size).float(),) * 2, indexing="ij")
    # What every tile says is a plane over the whole image: so must be what they say together.
    planes = [2 * (rows + top * down) + 3 * (columns + left * right) for top, left in places]
    joined.add(places, torch.stack(planes))
    found = joined.map()
    assert tuple(found.shape) == map_size(size, view)
    rows, columns = torch.meshgrid(*(torch.arange(length).float() for length in found.shape), indexing="ij")
    assert (found - 2 * rows - 3 * columns).abs().max() <= 5  # of half a pixel that corners are rounded by, each way
    assert restore_map(found, size, view).shape == size


def test_tiles_that_disagree_pass_into_one_another():
    """Nowhere does what they say together change faster from one pixel to the next than where two lie alone."""
    view = View(64, tile=64)
    joined = Joined((64, 112), view)
    places = corners((64, 112), view)
    joined.add(places, torch.stack([torch.full((64, 64), float(n % 2)) for n in range(len(places))]))
    assert joined.map().diff(dim=1).abs().max() < 0.1


def write_large(root, count=4, seed=3):
    """Large noise; abnormal ones have a bright spot of 20 pixels that is all but lost in 32."""
    rng = np.random.default_rng(seed)
    for kind in ("normal", "abnormal"):
        for number in range(count):
            grey = rng.integers(90, 110, (SIDE, SIDE)).astype(np.uint8)
            mask = np.zeros_like(grey)
            if kind == "abnormal":
                top, left = rng.integers(10, SIDE - 40, 2)
                grey[top : top + 20, left : left + 20] = 250
                mask[top : top + 20, left : left + 20] = 255
                (root / "masks").mkdir(exist_ok=True, parents=True)
                Image.fromarray(mask).save(root / f"masks/{kind}{number}.png")
            (root / kind).mkdir(exist_ok=True, parents=True)
            Image.fromarray(grey).save(root / kind / f"{kind}{number}.png")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_large(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def detector(data, small_backbone):
    recipe = Recipe(image_size=64, variants=("identity",), epochs=1, batch_size=8, tile=128)
    return MadCLIP(recipe, backbone=small_backbone, objective="Brain").fit(data, shots=2, folds=2)


def test_shots_are_tiles_and_count_as_images(detector, data):
    known = detector.provenance
    assert (known.normal, known.abnormal, known.masks) == (2, 2, 2)
    assert len(known.shots) == 4
    assert known.uncalibrated.startswith("not calibrated: a few tiles of each shot say little of whole images")
    detector.calibrate(data)
    assert detector.calibration is not None


def test_a_prediction_is_made_of_those_of_its_tiles(detector, data):
    (sample,) = load_dataset(data).abnormal[:1]
    pixels = np.asarray(Image.open(sample.image.path))
    whole = MadCLIP(detector.recipe.replace(tile=0), backbone=detector.backbone, objective="Brain")
    whole.fitted = detector.fitted
    size, view = pixels.shape, detector.recipe.view
    tiles = [whole.predict(pixels[top : top + 128, left : left + 128]) for top, left in corners(size, view)]
    found = detector.predict(sample.image)
    assert found.score == pytest.approx(max(tile.score for tile in tiles), abs=1e-5)
    assert found.anomaly_map.shape == size
    # Where one tile alone lies, the map is that tile's.
    np.testing.assert_allclose(found.anomaly_map[:24, :24], tiles[0].anomaly_map[:24, :24], atol=0.02)
    assert detector.predict(np.full((100, 90), 128, np.uint8)).anomaly_map.shape == (100, 90)


@pytest.mark.parametrize("pixel_size", ["native", "recipe"])
def test_evaluation_sees_the_same_maps(data, detector, pixel_size, tmp_path):
    other = write_large(tmp_path / "other", 2, seed=4)
    result = evaluate(detector, other, pixel_size=pixel_size)
    scores = {row.name: row.score for row in result.rows}
    for sample in load_dataset(other).samples:
        assert scores[load_dataset(other).name(sample.image)] == pytest.approx(
            detector.predict(sample.image).score, abs=1e-6
        )
    assert result.metrics["pixel_auroc"].value is not None


def test_what_tiles_cannot_do_is_said(data, detector, small_backbone, tmp_path):
    with pytest.raises(RecipeError, match="in tiles: give them to predict"):
        detector.score(torch.zeros(1, 3, 300, 300))
    with pytest.raises(RecipeError, match="0 or at least 32 pixels, not 5"):
        Recipe(tile=5)
    fresh = MadCLIP(detector.recipe, backbone=small_backbone, objective="Brain")
    with pytest.raises(RecipeError, match="epoch is not chosen"):
        fresh.fit(data, shots=4, run=Run(select="val"))
    images = [np.zeros((200, 200), np.uint8), np.eye(200, dtype=np.uint8)]
    with pytest.raises(DataError, match="nothing says which of its tiles are"):
        fresh.fit(images, [0, 1])
