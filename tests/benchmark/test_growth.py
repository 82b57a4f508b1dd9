"""Growth of cost: points that are what they say, a line through them, and a page."""

import sys
from pathlib import Path

import numpy as np
import pytest

from madclip import MadCLIP
from madclip.data.load import load_dataset


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import growth

    yield growth
    sys.modules.pop("growth")


def test_a_line_through_points_on_it_and_off_it(growth):
    exact = growth.line([growth.Point(x, 2 + 0.5 * x) for x in (1, 10, 100)])
    assert exact == pytest.approx((2, 0.5, 0), abs=1e-9)
    squares = growth.line([growth.Point(x, x * x) for x in (1, 2, 4, 8)])
    assert squares.departure > 0.3


def test_no_two_images_are_alike(growth, tmp_path):
    images = list(growth.different_images(growth.phantoms(tmp_path / "images"), 200))
    assert len({image.tobytes() for image in images}) == len(images)
    assert images[0].shape == (240, 240, 3)
    assert images[0].dtype == np.uint8


def test_points_of_one_run(growth, small_detector, small_backbone, tmp_path):
    points = growth.image_points(MadCLIP.load(small_detector, backbone=small_backbone), tmp_path / "images", 40)
    assert points[-1].x == 40
    assert [p.seconds for p in points] == sorted(p.seconds for p in points)
    assert all(p.mb > 10 for p in points)
    total = sum(p.seconds * (b.x - a.x) for p, a, b in zip(growth.per_image(points), points, points[1:], strict=False))
    assert total == pytest.approx(points[-1].seconds - points[0].seconds)


def test_fits_are_of_the_shots_and_epochs_named(growth, monkeypatch, tmp_path):
    asked = []

    def fit(self, data, *, shots, folds, run):
        asked.append((shots or len(load_dataset(data.root).shot_pool) // 2, self.recipe.epochs))

    monkeypatch.setattr(growth.MadCLIP, "fit", fit)
    points = growth.fit_points(tmp_path, shots=(1, 2), epochs=(1, 5))
    epochs = growth.Recipe().epochs
    assert set(asked[1:]) == {(1, epochs), (2, epochs), (2, 1), (2, 5)}
    assert {p.x for p in points} == {epochs, 2 * epochs, 2, 10}


def test_the_page_and_its_picture(growth, tmp_path):
    points = [growth.Point(x, 0.1 * x, 500 + x % 2) for x in range(1, 21)]
    found = dict.fromkeys(("fit", "images", "size", "depth"), points)
    growth.figure(found, tmp_path / "growth.svg")
    assert (tmp_path / "growth.svg").read_text().count('<g id="line2d') > 5
    text = growth.markdown(found, "growth.svg")
    assert "0.00 s + 0.100 s x shots x epochs; the furthest of 20 fits departs from that line by 0%" in text
    assert "20 different images were predicted in 2 s. Each took 0.1000 to 0.1000 s" in text
    assert "held 500 to 501 MB" in text
