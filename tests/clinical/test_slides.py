"""Whole slides: levels and regions as independent readers have them, tissue found first, and a map that lies on it."""

import subprocess
import sys

import numpy as np
import openslide
import pytest
import tifffile
import torch

from data.slide_files import MPP, halved, write_dicom, write_tiff
from madclip.clinical.slides import predict_slide
from madclip.data.readers.slides import find_slides, open_slide
from madclip.data.slides import Cut, Magnification, tissue_of
from madclip.detector import MadCLIP
from madclip.errors import DataError, RecipeError
from madclip.recipe import Recipe, View

GLASS = 244
TISSUE = (slice(300, 900), slice(500, 1300))
"""Rows and columns of the slide that are tissue."""
LESION = (slice(640, 740), slice(1000, 1100))


@pytest.fixture(scope="module")
def colours():
    made = np.full((1200, 1800, 3), GLASS, np.uint8)
    noise = np.random.default_rng(0).integers(0, 60, (600, 800, 1))
    made[TISSUE] = noise + np.array([170, 90, 150])
    made[LESION] = (250, 250, 40)
    return made


@pytest.fixture(scope="module")
def slide(tmp_path_factory, colours):
    return write_tiff(tmp_path_factory.mktemp("slide") / "s.tif", colours)


@pytest.fixture(scope="module")
def dicom_slide(tmp_path_factory, colours):
    return write_dicom(tmp_path_factory.mktemp("slide") / "s", colours)


@pytest.fixture
def detector(small_detector):
    return MadCLIP.load(small_detector, device="cpu")


def test_levels_and_regions_of_a_tiff_are_as_openslide_has_them(slide, colours):
    with open_slide(slide) as found, openslide.OpenSlide(slide) as other:
        assert [(level.width, level.height) for level in found.levels] == list(other.level_dimensions)
        assert found.levels[0].mpp == pytest.approx([float(other.properties[f"openslide.mpp-{a}"]) for a in "yx"])
        assert found.levels[2].mpp == pytest.approx((4 * MPP, 4 * MPP), rel=1e-3)
        for number in range(3):
            top, left = 77, 101
            there = found.region(number, top, left, 190, 150)
            theirs = np.asarray(other.read_region((left * 2**number, top * 2**number), number, (150, 190)))
            assert np.array_equal(there, theirs[..., :3])
        assert np.array_equal(found.region(0, 77, 101, 190, 150), colours[77:267, 101:251])


def test_regions_of_a_dicom_slide_are_those_of_its_frames(dicom_slide, colours):
    with open_slide(dicom_slide) as found, openslide.OpenSlide(dicom_slide / "0.dcm") as other:
        assert [(level.height, level.width) for level in found.levels] == [(1200, 1800), (600, 900)]
        assert found.levels[1].mpp == pytest.approx((2 * MPP, 2 * MPP))
        assert np.array_equal(found.region(0, 577, 901, 190, 250), colours[577:767, 901:1151])
        assert np.array_equal(found.region(1, 300, 450, 90, 70), halved(colours, 1)[300:390, 450:520])
        theirs = np.asarray(other.read_region((901, 577), 0, (250, 190)))[..., :3]
        assert np.array_equal(found.region(0, 577, 901, 190, 250), theirs)


def test_what_lies_beyond_the_edge_is_white(slide, dicom_slide):
    for path in (slide, dicom_slide):
        with open_slide(path) as found:
            there = found.region(0, 1150, 1750, 100, 100)
        assert (there[:50, :50] == GLASS).all()
        assert (there[50:] == 255).all()
        assert (there[:, 50:] == 255).all()


def test_tissue_is_what_is_coloured(slide, colours):
    with open_slide(slide) as found:
        picture, spacing = found.overview()
    assert max(picture.shape) <= 1024
    factor = spacing[0] / (MPP / 1000)
    assert picture.shape[:2] == (1200 / factor, 1800 / factor)
    wanted = np.zeros((1200, 1800), bool)
    wanted[TISSUE] = True
    wanted = wanted[:: int(factor), :: int(factor)]
    tissue = tissue_of(picture)
    assert (tissue & wanted).sum() / (tissue | wanted).sum() > 0.98
    assert not tissue_of(np.random.default_rng(0).integers(235, 246, (50, 50, 3)).astype(np.uint8)).any()


def test_a_magnification_takes_the_level_that_is_fine_enough(slide):
    with open_slide(slide) as found:
        read = {mpp: Cut.of(found, View(64), Magnification(mpp=mpp)) for mpp in (0.5, 0.75, 1.0, 3.0)}
        assert {mpp: (cut.level, cut.view.tile) for mpp, cut in read.items()} == {
            0.5: (0, 64),
            0.75: (0, 96),
            1.0: (1, 64),
            3.0: (2, 96),
        }
        assert Cut.of(found, View(64, tile=200), Magnification(level=1)).view.tile == 200
        for at, word in ((Magnification(mpp=0.1), "finest"), (Magnification(level=3), "0 to 2")):
            with pytest.raises(DataError, match=word):
                Cut.of(found, View(64), at)
    with pytest.raises(RecipeError):
        Magnification(level=1, mpp=0.5)


def test_a_map_of_a_huge_slide_is_bounded():
    class Huge:
        path = "huge"
        levels = (type("L", (), {"height": 90_000, "width": 150_000, "mpp": None}),)

    cut = Cut.of(Huge, View(240), Magnification(level=0))
    assert cut.map_size[0] * cut.map_size[1] <= 2**24
    assert cut.map_size[0] / 90_000 == pytest.approx(cut.map_size[1] / 150_000, rel=1e-3)


@pytest.mark.parametrize("kind", ["tiff", "dicom"])
def test_the_score_is_the_highest_tiles_and_the_map_lies_on_the_slide(slide, dicom_slide, colours, detector, kind):
    found = predict_slide(detector, slide if kind == "tiff" else dicom_slide, Magnification(level=0))
    assert found.anomaly_map.shape == (1200, 1800)  # tiles are as large as what the backbone sees
    assert found.threshold is found.decision is None
    assert "0.5 microns" in found.note or kind == "tiff"
    # Tiles of which nothing is tissue are not scored.
    assert found.anomaly_map[:200].max() == found.anomaly_map[:, :400].max() == 0
    assert found.anomaly_map[350:850, 550:1250].min() > 0
    # Each tile as an image of its own, without any of the code above.
    with open_slide(slide) as opened:
        places, total = Cut.of(opened, detector.recipe.view, Magnification(level=0)).corners(colours[::2, ::2, 1] < 200)
    assert len(places) < total / 3
    tiles = [colours[top : top + 64, left : left + 64] for top, left in places]
    assert found.score == pytest.approx(max(one.score for one in detector.predict(tiles)), abs=1e-6)


def test_a_slide_is_computed_by_the_engine_and_its_map_has_every_pixel_in_its_place(slide, colours, detector):
    """An engine whose map is what it sees."""
    width = len(detector.state.familiarity.features[0])
    detector.engine = lambda pixels: (pixels[:, 1].amax((1, 2)), pixels[:, 1], torch.ones(len(pixels), width))
    found = predict_slide(detector, slide, Magnification(level=0))
    rows, columns = slice(TISSUE[0].start + 64, TISSUE[0].stop - 64), slice(TISSUE[1].start + 64, TISSUE[1].stop - 64)
    assert found.anomaly_map[rows, columns] * 255 == pytest.approx(colours[rows, columns, 1], abs=0.01)


def test_a_lesion_shows_where_it_is(slide, colours, small_recipe, small_backbone):
    places = [(top, left) for top in (320, 420, 520) for left in (560, 700, 1150, 1200)]
    normal = [colours[top : top + 64, left : left + 64] for top, left in places]
    abnormal, masks = [tile.copy() for tile in normal], [np.zeros((64, 64), bool) for _ in normal]
    for number, (tile, mask) in enumerate(zip(abnormal, masks, strict=True)):
        mask[number * 3 : number * 3 + 30, 20:50] = True
        tile[mask] = colours[LESION][0, 0]
    learned = MadCLIP(small_recipe, backbone=small_backbone, objective="Histology")
    learned.fit([*normal, *abnormal], [0] * 12 + [1] * 12, [None] * 12 + masks, folds=0)
    # Coarser than what was learned from: colours stay what they are.
    for at, side in ((Magnification(mpp=0.75), (800, 1200)), (Magnification(level=1), (600, 900))):
        found = predict_slide(learned, slide, at).anomaly_map
        assert found.shape == side
        scale = side[0] / 1200
        rows, columns = (int((one.start + one.stop) / 2 * scale) for one in LESION)
        row, column = np.unravel_index(found.argmax(), found.shape)
        assert abs(row - rows) < 60 * scale
        assert abs(column - columns) < 60 * scale


def test_what_is_no_slide_is_refused_in_one_line(slide, colours, detector, tmp_path, monkeypatch):
    at = Magnification(level=0)
    plain = tmp_path / "plain.tif"
    plain.write_bytes(b"II*\0 and nothing")
    text = tmp_path / "text.svs"
    text.write_text("no slide")
    cut_off = tmp_path / "cut.tif"
    write_tiff(cut_off, colours, levels=1)
    cut_off.write_bytes(cut_off.read_bytes()[:-4000])
    short = tmp_path / "short.tif"
    with tifffile.TiffWriter(short) as out:  # pixels first, so that what is cut off is pixels
        out.write(colours, tile=(256, 256), photometric="rgb", metadata=None)
    whole = short.read_bytes()
    short.write_bytes(whole[: len(whole) // 2])
    grey = write_tiff(tmp_path / "grey.tif", np.repeat(colours[..., :1], 3, -1))
    deep = tmp_path / "deep.tif"
    tifffile.imwrite(deep, colours.astype(np.uint16), tile=(256, 256), photometric="rgb")
    strip = tmp_path / "strip.tif"
    tifffile.imwrite(strip, colours, photometric="rgb", rowsperstrip=1200)
    monkeypatch.setattr("madclip.data.readers.slides.MAX_PIXELS", 2**20)
    (tmp_path / "ct").mkdir()
    for path in (plain, text, short, cut_off, grey, deep, strip, tmp_path / "none.tif", tmp_path / "ct"):
        with pytest.raises(DataError) as error:
            predict_slide(detector, path, at)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="microns"):
        predict_slide(detector, write_tiff(tmp_path / "n.tif", colours, mpp=None), Magnification(mpp=1.0))
    with pytest.raises(DataError, match="no slides"):
        find_slides([tmp_path / "ct"])
    detector.recipe = Recipe(grey_range="p1,p99")
    with pytest.raises(RecipeError, match="grey range"):
        predict_slide(detector, slide, at)


def test_memory_does_not_grow_with_the_slide(tmp_path):
    """The level that is read holds 108 MB of colours, of which at most a third is in memory at once."""
    side, tile = 6_000, 512
    white = np.full((tile, tile, 3), GLASS, np.uint8)
    stained = white - np.array([80, 150, 90], np.uint8)
    count = -(-side // tile)
    pieces = (stained if row == column == count // 2 else white for row in range(count) for column in range(count))
    path = tmp_path / "large.tif"
    tifffile.imwrite(
        path, pieces, shape=(side, side, 3), dtype="u1", tile=(tile, tile), photometric="rgb", compression="lzw"
    )
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from madclip.data.readers.slides import open_slide; from madclip.data.slides import *; "
        "from madclip.recipe import View\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "with open_slide(Path(sys.argv[1])) as slide:\n"
        "    slide.region(0, 0, 0, 1024, 1024); before = peak()\n"
        "    cut = Cut.of(slide, View(240), Magnification(level=0))\n"
        "    places, total = cut.corners(tissue_of(slide.overview()[0]))\n"
        "    for top, left in places: slide.region(0, top, left, 240, 240)\n"
        "    print(peak() - before, len(places), total)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    grown, seen, total = map(int, done.stdout.split())
    assert 9 <= seen <= 25 < 1000 < total
    assert grown < 40
