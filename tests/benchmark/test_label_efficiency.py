"""Labelling replayed: what is shared out, how many labels are needed, and a whole run on phantoms."""

import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def replayed(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import label_efficiency

    yield label_efficiency
    sys.modules.pop("label_efficiency")


def test_labels_needed_by_curves_that_are_known(replayed):
    assert replayed.COUNTS == (8, 12, 16, 24, 32)
    rising = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    assert replayed.needed(rising, 0.75) == pytest.approx(20)
    assert replayed.needed(rising, 0.4) == 8
    assert replayed.needed(rising, 0.95) == 32
    steep = np.array([0.8, 0.9, 0.9, 0.9, 0.9])
    curves = {
        "a": {"x": [steep] * 3, replayed.RANDOM: [rising] * 3},
        "b": {"x": [rising] * 3, replayed.RANDOM: [rising] * 3},
    }
    assert replayed.share(curves, "x") == pytest.approx((12 / 32 + 1) / 2)
    low, high = replayed.interval(curves, lambda sample: replayed.share(sample, "x"))
    assert (low, high) == pytest.approx((12 / 32, 1))


def test_rules_are_replayed_on_phantoms_and_told_on_the_page(replayed, monkeypatch, tmp_path):
    write = replayed.write_phantoms
    monkeypatch.setattr(replayed, "PHANTOMS", {"chest": "Chest X-ray film"})
    monkeypatch.setattr(replayed, "COUNTS", (4, 6))
    monkeypatch.setattr(replayed, "RESAMPLES", 20)
    monkeypatch.setattr(replayed, "write_phantoms", lambda out, kind, *_, shots: write(out, kind, 3, 3, 0, shots=8))
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- labels-ridge -->\n<!-- end labels-ridge -->\nb\n")
    arguments = [
        "x",
        "--on",
        "phantoms",
        "--ridge",
        "--seeds",
        "2",
        "--out",
        str(tmp_path / "out"),
        "--docs",
        str(page),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    asked = []
    plain = replayed.by_ridge

    def by_ridge(images, pool, members, seed):
        assert set(members) <= set(pool)
        assert not images.tested[pool].any()
        asked.append(len(members))
        return plain(images, pool, members, seed)

    monkeypatch.setattr(replayed, "by_ridge", by_ridge)
    replayed.main()
    assert asked == [4, 6] * 3 * 2
    assert page.read_text().count("| chest |") == 3
    assert "<svg" in (tmp_path / "labels-ridge.svg").read_text()
    replayed.main()
    assert len(asked) == 12  # what is finished is not made again
