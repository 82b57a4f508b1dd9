"""What is taken where nothing is named: the backbone, and the recipe that goes with it."""

import pytest

from madclip import MadCLIP, Recipe, load_backbone
from madclip.backbones.names import default_recipe
from madclip.cli.options import parse_recipe

PAIR = "stand-in+lite0"


@pytest.fixture(scope="module")
def pair():
    return load_backbone(PAIR, device="cpu")


def test_several_towers_are_scored_by_their_map(pair, small_backbone, tmp_path):
    assert default_recipe(PAIR) == default_recipe(pair) == "fused"
    assert default_recipe("tiny") == default_recipe(small_backbone) == "madclip"
    (tmp_path / "a+b").mkdir()
    assert default_recipe(str(tmp_path / "a+b")) == default_recipe(tmp_path / "a+b") == "madclip", "one folder"
    assert Recipe.preset("fused").replace(name="madclip", image_score="both") == Recipe()


@pytest.mark.parametrize("backbone", [PAIR, "pair"])
def test_a_detector_takes_it_and_one_that_is_named_wins(backbone, pair):
    backbone = pair if backbone == "pair" else backbone
    detector = MadCLIP(backbone=backbone)
    assert detector.recipe == Recipe.preset("fused")
    assert detector.get_params()["recipe"] is None
    assert detector.set_params(backbone="stand-in").recipe == Recipe.preset("madclip")
    assert MadCLIP("madclip", backbone=backbone).recipe == Recipe.preset("madclip")
    assert MadCLIP(Recipe(epochs=1), backbone=backbone).recipe == Recipe(epochs=1)


def test_changes_on_the_command_line_start_from_it():
    assert parse_recipe(None, ["epochs=1"], backbone=PAIR) == Recipe.preset("fused", epochs=1)
    assert parse_recipe("madclip", ["epochs=1"], backbone=PAIR) == Recipe(epochs=1)
    assert parse_recipe(None, ["image_score=mean"], backbone=PAIR).image_score == "mean"
    assert parse_recipe(None, [], backbone="stand-in") == Recipe()
