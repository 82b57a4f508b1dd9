"""Changes that recipes are compared with: what each changes, and that it learns."""

import sys
from pathlib import Path

import pytest
import torch

from madclip import Recipe, load_backbone
from madclip.training.encode import prepare
from madclip.training.fit import fit_head
from madclip.training.shots import Shot

RECIPE = Recipe(variants=("identity", "flip-horizontal"), epochs=8, batch_size=4, image_size=64)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("stand-in", image_size=64, device="cpu")


@pytest.fixture
def changes(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import changes

    yield changes
    sys.modules.pop("changes")


def shots():
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[8:40, 20:44] = True
    return [
        Shot(
            torch.rand(3, 64, 64, generator=generator) / 2 + 0.5 * label * mask, label, mask if label else None, f"{i}"
        )
        for i, label in enumerate((0, 0, 1, 1))
    ]


@pytest.mark.parametrize("name", ["learned-scale", "learned-weights", "narrow", "fresh", "combined"])
def test_each_learns(backbone, changes, name):
    change = changes.CHANGES[name]
    data, recipe = (
        change.data(shots(), backbone, RECIPE, 0) if change.data else (prepare([*shots()], backbone, RECIPE), RECIPE)
    )
    head = change.head(recipe, backbone, "Brain", seed=0)
    before = [p.detach().clone() for p in head.parameters()]
    losses = []
    fit_head(head, data, recipe, progress=lambda *_, loss=None, **__: losses.append(loss))
    assert sum(losses[-3:]) < 0.97 * sum(losses[:3])
    assert not any(torch.equal(p, was) for p, was in zip(head.parameters(), before, strict=True))


def test_fresh_augmentation_takes_as_many_steps_and_masks_follow(backbone, changes):
    data, recipe = changes.fresh(shots(), backbone, RECIPE, 0)
    assert recipe.epochs * data.masks.shape[1] == RECIPE.epochs * len(RECIPE.variants)
    assert not data.masks[0].any()
    ill = data.masks[2].flatten(1).float()
    assert len(ill.unique(dim=0)) == len(ill)
    assert 0.5 < ill.mean() / shots()[2].mask.float().mean() < 1.9


def test_the_narrow_head_has_about_a_quarter_of_the_weights(backbone, changes):
    whole, narrow = (
        sum(p.numel() for p in kind(RECIPE, backbone, "Brain").adapters.parameters())
        for kind in (changes.Head, changes.Narrow)
    )
    assert narrow == whole / 4
