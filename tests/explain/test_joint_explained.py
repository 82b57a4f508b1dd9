"""A joint detector explained as a whole: its parts are those of each modality alone, its distances plain arithmetic."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from madclip import MadCLIP
from madclip.data.geometry import fit_pixels
from madclip.data.load import load_dataset
from madclip.data.readers import read_image
from madclip.errors import DataError, RecipeError
from madclip.explain import explain
from madclip.explain.joint import Joint, Pair, findings_of_joint
from madclip.report.explanation import render_explanation
from report.test_explanation_page import safe

NAMES = ("Brain", "Liver", "Chest")


@pytest.fixture(scope="module")
def sets(make_images, tmp_path_factory):
    made = {}
    for number, name in enumerate(NAMES):
        made[name] = make_images(
            tmp_path_factory.mktemp("apart") / name, {"valid": (4, 4), "test": (1, 1)}, seed=number
        )
        for path in made[name].rglob("img/*.png"):
            pixels = np.asarray(Image.open(path)) * np.linspace(1 - 0.4 * number, 1, 64)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return made


@pytest.fixture(scope="module")
def joint(small_recipe, small_backbone, sets):
    return MadCLIP(small_recipe, backbone=small_backbone).fit(sets, shots=3, folds=2)


@pytest.fixture(scope="module")
def image(sets):
    return load_dataset(sets["Liver"]).test_pool[0].image


@pytest.fixture(scope="module")
def told(joint, image, sets):
    return explain(joint, image, data=[*sets.values()])


@pytest.fixture(scope="module")
def whole(joint, sets):
    return explain(joint, data=[*sets.values()])


def pooled(backbone, recipe, image):
    """Mean patch of each tap at unit length, all in a row at unit length, in NumPy."""
    pixels = fit_pixels(read_image(image).pixels, recipe.view)[None]
    with torch.inference_mode():
        taps = [one[0].double().numpy() for one in backbone.encode_image(backbone.prepare(pixels))]
    rows = [one[backbone.spec.prefix_tokens :].mean(0) for one in taps]
    row = np.concatenate([one / np.linalg.norm(one) for one in rows])
    return row / np.linalg.norm(row)


@pytest.fixture(scope="module")
def shots(joint, sets, small_backbone):
    """Pooled tokens of each modality's shots, by their file."""
    return {
        name: {
            sample.image: pooled(small_backbone, joint.recipe, sample.image)
            for sample in load_dataset(folder).shot_pool
            if sample.image.digest() in joint.provenance.shots
        }
        for name, folder in sets.items()
    }


def mistaken(mine, others):
    """How many would be taken for one of the others if they were left out, one by one."""
    wrong = 0
    for number, row in enumerate(mine):
        left = np.delete(mine, number, 0)
        wrong += (others @ row).max() > (left @ row).max()
    return wrong


def test_distances_are_those_of_plain_arithmetic(joint, told, whole, shots, image, small_backbone):
    here = pooled(small_backbone, joint.recipe, image)
    expected = {name: {file: 1 - here @ row for file, row in rows.items()} for name, rows in shots.items()}
    assert sorted(NAMES, key=lambda name: min(expected[name].values())) == [one.modality for one in told.route]
    assert told.image.prediction.modality == told.route[0].modality == "Liver"
    for one in told.route:
        assert one.distance == pytest.approx(min(expected[one.modality].values()), abs=1e-6)
        assert one.shot.image == min(expected[one.modality], key=expected[one.modality].get)
    assert [pair.names for pair in whole.joint.pairs] == [("Brain", "Liver"), ("Brain", "Chest"), ("Liver", "Chest")]
    for pair in whole.joint.pairs:
        mine, theirs = (np.stack([*shots[name].values()]) for name in pair.names)
        assert pair.distance == pytest.approx((1 - mine @ theirs.T).min(), abs=1e-6)
        assert (pair.mistaken, pair.shots) == (mistaken(mine, theirs) + mistaken(theirs, mine), 12)
        ways = [np.subtract(*joint.of(name).state.text.double().numpy().T) for name in pair.names]
        assert pair.texts == pytest.approx(ways[0] @ ways[1] / np.prod([np.linalg.norm(way) for way in ways]), abs=1e-6)
    said = f"taken for 'Liver': the nearest of its shots is at distance {told.route[0].distance:.4f}"
    assert said in told.findings[0]


def test_an_image_is_explained_as_by_its_modality_alone(joint, told, image, sets):
    alone = explain(joint, image, data=sets["Liver"], modality="Liver")
    assert alone.route == ()
    torch.testing.assert_close(told.image.parts.given, alone.image.parts.given, rtol=0, atol=0)
    torch.testing.assert_close(told.image.parts.maps, alone.image.parts.maps, rtol=0, atol=0)
    torch.testing.assert_close(told.shots.given, alone.shots.given, rtol=0, atol=0)
    assert [one.image for one in told.shots.samples] == [one.image for one in alone.shots.samples]
    assert (told.texts, told.moved) == (alone.texts, alone.moved)
    assert told.findings[1:] == alone.findings
    assert float(told.image.parts.scores[0]) == pytest.approx(joint.predict(image).score, abs=2e-6)


def test_without_an_image_each_modality_and_what_all_share(joint, whole, sets):
    assert [*whole.joint.parts] == [*NAMES]
    for name, part in whole.joint.parts.items():
        alone = explain(joint.of(name), data=sets[name])
        assert part.to_dict() == alone.to_dict()
        torch.testing.assert_close(part.shots.given, alone.shots.given, rtol=0, atol=0)
        assert part.moved == whole.moved, "the adapters are the same"
    assert len({part.texts.between for part in whole.joint.parts.values()}) == 3
    count = sum(one.numel() for one in joint.state.head.parameters())
    assert whole.joint.shared + 3 * whole.joint.own == count
    prompts = joint.of("Brain").state.head.prompts.parameters()
    assert whole.joint.own == sum(one.numel() for one in prompts)
    text = json.dumps(whole.to_dict(), allow_nan=False)
    assert "Maier" not in text
    assert {*json.loads(text)["modalities"]} == {*NAMES}


def test_shots_of_other_modalities_are_no_shots_of_one(joint, sets):
    found = explain(joint.of("Brain"), data=[*sets.values()]).shots
    assert len(found.samples) == found.of == 6
    assert all(one.image.path.is_relative_to(sets["Brain"]) for one in found.samples)
    with pytest.raises(DataError, match="holds none of the detector's 6 shots"):
        explain(joint.of("Brain"), data=sets["Liver"])
    with pytest.raises(RecipeError, match="unknown modality 'Eye': this detector knows Brain, Liver, Chest"):
        explain(joint, modality="Eye")


def test_modalities_that_look_alike_are_said():
    pairs = Pair(("Brain", "Liver"), 0.1, 2, 12, 0.5), Pair(("Brain", "Chest"), 0.3, 0, 12, 0.5)
    said = " ".join(findings_of_joint(Joint({}, pairs, 10, 1)))
    assert "'Brain' and 'Liver' look alike: 2 of their 12 shots" in said
    assert "Chest" not in said


def test_the_page(joint, told, whole, image, sets):
    text = render_explanation(told)
    safe(text)
    assert text.count('alt="nearest shot of') == 3
    for one in told.route:
        assert f"{one.modality}: {one.distance:.4f}" in text
        assert one.shot.image.name in text
    some = render_explanation(explain(joint, image, data=sets["Brain"]))
    safe(some)
    assert some.count('alt="nearest shot of') == 1
    assert "The nearest shot of Liver, Chest is not shown" in some
    text = render_explanation(whole)
    safe(text)
    for name, part in whole.joint.parts.items():
        assert f"<h2>{name}</h2>" in text
        assert f"normal with abnormal: {part.texts.between:+.3f}".replace("-", "−") in text
    for pair in whole.joint.pairs:
        assert f"{pair.distance:.4f}" in text
    assert "share them" in text
    safe(render_explanation(explain(joint)))
