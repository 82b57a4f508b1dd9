"""Tokens of one tower or several: each tower's are kept by themselves, and a detector on several is whole."""

import pytest
import torch
from makers import MAKERS, dino_folder

from madclip import MadCLIP, Recipe, load_backbone
from madclip.training.cache import TokenCache
from madclip.training.encode import encode_patches, prepare
from madclip.training.shots import labelled_shot

RECIPE = Recipe.preset("madclip", image_size=64, variants=("identity", "flip-horizontal"), epochs=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("towers")
    clip, _ = MAKERS["clip_folder"](place / "clip")
    return clip, dino_folder(place / "first", "dinov3")[0], dino_folder(place / "second", "dinov2")[0]


def images(count, seed=0):
    return torch.rand(count, 64, 64, 3, generator=torch.Generator().manual_seed(seed)).numpy()


def shots():
    return [labelled_shot(image, number % 2, None, RECIPE.view) for number, image in enumerate(images(4))]


def loaded(*folders):
    return load_backbone("+".join(str(folder) for folder in folders), image_size=64, device="cpu")


def test_another_partner_costs_only_that_partner(folders, tmp_path, monkeypatch):
    clip, first, second = folders
    cache = TokenCache(tmp_path / "tokens")
    prepare(shots(), loaded(clip, first), RECIPE, cache=cache)
    kept = len(cache.entries())
    assert kept == 2 * 4
    other = loaded(clip, second)
    encoded = []
    for tower in other.towers:
        plain = tower.encode_image
        name = tower.spec.id
        monkeypatch.setattr(tower, "encode_image", lambda x, p=plain, n=name, **o: encoded.append(n) or p(x, **o))
    prepare(shots(), other, RECIPE, cache=cache)
    assert set(encoded) == {"second"}
    assert len(cache.entries()) == kept + 4


def test_kept_tokens_are_those_of_the_pixels(folders, tmp_path):
    clip, first, _ = folders
    fused, cache = loaded(clip, first), TokenCache(tmp_path / "tokens")
    fresh, again = (prepare(shots(), fused, RECIPE, cache=cache) for _ in range(2))
    for number, image in enumerate(images(4)):
        expected = torch.stack(encode_patches(fused, RECIPE.view, torch.from_numpy(image).movedim(-1, 0)[None]), 1)[0]
        for data in (fresh, again):
            assert torch.allclose(data.plain[number], expected, atol=1e-5)


def test_tokens_of_one_tower_are_its_streams(folders):
    backbone = loaded(folders[0])
    pixels = torch.from_numpy(images(2)).movedim(-1, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.spec.mean, backbone.spec.std))
    for normalise, given in ((True, (pixels - mean) / std), (False, pixels)):
        view = RECIPE.view.__class__(64, normalise=normalise)
        found = encode_patches(backbone, view, pixels)
        assert all(torch.equal(a, b[:, 1:]) for a, b in zip(found, backbone.encode_image(given), strict=True))


def test_a_detector_on_several_towers_is_saved_and_read(folders, tmp_path):
    source = "+".join(str(folder) for folder in folders[:2])
    detector = MadCLIP(RECIPE, backbone=source, device="cpu").fit(list(images(8)), [0, 1] * 4, folds=0)
    detector.save(tmp_path / "detector")
    before, after = (d.predict(list(images(2, seed=1))) for d in (detector, MadCLIP.load(tmp_path / "detector")))
    for one, other in zip(before, after, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        assert one.anomaly_map.shape == (64, 64)
