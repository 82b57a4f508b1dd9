"""What is taken where nothing is named: the backbone, and the recipe that goes with it."""

import inspect
import json
import sys

import pytest
import torch

from madclip import MadCLIP, Recipe, cli, load_backbone
from madclip.backbones.names import default_recipe
from madclip.cli.bench import _methods, experiment
from madclip.cli.options import parse_recipe

PAIR = "stand-in+lite0"
DEFAULT = "tiny+lite0"
QUICK = ["--folds", "0", "--device", "cpu", "--set", "image_size=48", "--set", "variants=identity", "--set", "epochs=1"]


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


def typed(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["madclip", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code


def kept(folder):
    facts = json.loads((folder / "detector.json").read_text())
    return facts["backbone"]["id"], facts["recipe"]["name"]


def by_class(out, data):
    detector = MadCLIP()
    return detector.backbone.spec.id, detector.recipe.name


def by_clone(out, data):
    clone = pytest.importorskip("sklearn.base").clone(MadCLIP())
    assert f"MadCLIP('fused', backbone='{DEFAULT}'" in repr(clone)
    return clone.backbone.spec.id, clone.recipe.name


def of_both_classes(out, data, *more):
    typed("fit", data, "--out", out, "--shots", 2, *QUICK, *more)
    return kept(out)


def of_normal_images(out, data):
    return of_both_classes(out, data, "--shots", "2,0")


def by_texts(out, data):
    return of_both_classes(out, data, "--shots", 0)


def of_several_sets(out, data):
    typed("phantoms", out.with_name("b"), "--modality", "generic", "--size", 48, "--shots", 2, "--normal", 1)
    typed("fit", "--joint", f"A={data}", f"B={out.with_name('b')}", "--out", out, "--shots", 2, *QUICK)
    return kept(out)


def by_draws(out, data):
    typed("repeat", data, "--out", out, "--seeds", 1, "--shots", 2, *QUICK)
    return kept(out / "seed-0" / "detector")


def by_project(out, data):
    pytest.importorskip("fastapi")
    from madclip.serve.orders import setting
    from madclip.serve.project import Project

    project = Project(out)
    with project.database.look() as session:
        chosen = setting(project, session, {})
        assert setting(project, session, {"recipe": "madclip"})["recipe"] == "madclip"
    project.close()
    return chosen["backbone"], chosen["recipe"]


WAYS = (by_class, by_clone, of_both_classes, of_normal_images, by_texts, of_several_sets, by_draws, by_project)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_where_nothing_is_named_it_is_the_pair_and_its_recipe(way, small_data, tmp_path):
    assert way(tmp_path / "out", small_data) == (DEFAULT, "fused")


def test_methods_are_compared_on_one_tower_by_default():
    assert inspect.signature(experiment).parameters["backbone"].default == "tiny"
    assert _methods(None, "real", "tiny") == ["madclip"]
    assert _methods(None, "real", DEFAULT) == ["fused"]
    assert _methods("all", "real", DEFAULT)[:2] == ["fused", "patchcore"]
    assert _methods("madclip,fused", "real", DEFAULT) == ["madclip", "fused"]


@pytest.fixture(scope="module")
def towers():
    return [load_backbone(name, image_size=120, device="cpu") for name in ("tiny", DEFAULT)]


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(3, 3, 120, 120, generator=torch.Generator().manual_seed(0))


class TestPairWithoutLearning:
    """What knows only texts, or normal images and texts, asks the tower that has texts."""

    @pytest.mark.parametrize("rule", ["mean", "max", "both"])
    def test_texts_alone_say_what_they_say_of_the_one_tower(self, towers, pixels, rule):
        recipe = Recipe(image_size=120, image_score=rule)
        alone, pair = (MadCLIP(recipe, backbone=each, objective="Brain").fit(shots=0).score(pixels) for each in towers)
        for one, other in zip(alone, pair, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
        assert alone[1].std() > 1e-3, "they say something"

    def test_beside_normal_images_texts_have_their_weight_and_no_more(self, towers, pixels):
        recipe = Recipe(image_size=120, image_score="max")
        images = [(255 * each.permute(1, 2, 0)).byte().numpy() for each in pixels.flip(2)]
        maps = {}
        for weight in (0.0, 0.2, 1.0):
            detector = MadCLIP(recipe.replace(text_weight=weight), backbone=towers[1], objective="Brain")
            maps[weight] = detector.fit(images, [0, 0, 0]).score(pixels)[1]
        assert torch.allclose(maps[0.2], 0.8 * maps[0.0] + 0.2 * maps[1.0], atol=1e-5)
        texts = MadCLIP(recipe, backbone=towers[0], objective="Brain").fit(shots=0).score(pixels)[1]
        assert torch.allclose(maps[1.0], texts, atol=1e-4)

    def test_the_maximum_is_for_detectors_of_both_classes(self, towers, pixels):
        fused = Recipe.preset("fused", image_size=120, variants=("identity",), epochs=1)
        images = [(255 * each.permute(1, 2, 0)).byte().numpy() for each in pixels.flip(2)]
        said = {}
        for labels in ([0, 0, 1], [0, 0, 0]):
            detector = MadCLIP(fused, backbone=towers[1], objective="Brain").fit(images, labels, folds=0)
            scores, maps = detector.score(pixels)
            said[sum(labels)] = detector.image_score, bool(torch.allclose(scores, maps.amax((1, 2)), atol=1e-6))
        said[-1] = MadCLIP(fused, backbone=towers[1], objective="Brain").fit(shots=0).image_score, False
        assert said == {1: ("max", True), 0: ("both", False), -1: ("both", False)}
