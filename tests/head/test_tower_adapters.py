"""Adapters of each tower: what partners may and may not change."""

import pytest
import torch

from madclip import Recipe, load_backbone
from madclip.backbones.fused import FusedBackbone
from madclip.head.head import Head
from madclip.head.tower_adapters import TowerAdapters
from madclip.training.encode import TrainingSet
from madclip.training.fit import fit_head

RECIPE = Recipe(image_size=64, epochs=2, batch_size=4, adapters_per_tower=True)


@pytest.fixture(scope="module")
def first():
    return load_backbone("stand-in", image_size=64, device="cpu")


def partner(first, width, fingerprint):
    """A tower in name: the head asks it for nothing but its width and fingerprint."""
    spec = type("Spec", (), {"id": "p", "taps": first.spec.taps, "width": width, "licence": "MIT", "commercial": True})
    spec.source = "p"
    return type("Named", (torch.nn.Module,), {"spec": spec(), "fingerprint": fingerprint})()


def head_of(first, *partners, recipe=RECIPE, seed=3):
    return Head(recipe, FusedBackbone(first, partners), "Brain", seed=seed)


def tokens_of(*widths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 5, 4, 16, width, generator=generator) for width in widths]  # shots, variants, taps, patches


@pytest.mark.parametrize("norm", ["none", "layer_norm"])
def test_a_partner_of_zeros_changes_nothing(first, norm):
    recipe = RECIPE.replace(adapter_norm=norm)
    alone, together = head_of(first, recipe=recipe), head_of(first, partner(first, 24, "a"), recipe=recipe)
    own = tokens_of(192)[0][:, 0].transpose(0, 1)
    with torch.no_grad():
        text = alone.text()
        assert torch.equal(text, together.text())
        expected = alone(own.unbind(), text)
        found = together(torch.cat([own, torch.zeros(*own.shape[:-1], 24)], -1).unbind(), text)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) < 1e-6


def test_weights_are_the_seeds_and_the_towers(first):
    a, b = partner(first, 24, "a"), partner(first, 24, "b")
    names = ("shared", "heads")

    def weights(head, at):
        return [getattr(head.adapters.towers[at], name) for name in names]

    def same(one, other):
        return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))

    whole = head_of(first, a, b)
    assert isinstance(whole.adapters, TowerAdapters)
    assert same(weights(whole, 2), weights(head_of(first, b), 1))
    assert not same(weights(whole, 1), weights(whole, 2))
    assert not same(weights(whole, 1), weights(head_of(first, a, seed=4), 1))


def test_fits_with_partners_swapped_agree(first):
    a, b = partner(first, 24, "a"), partner(first, 40, "b")
    own, of_a, of_b = tokens_of(192, 24, 40)
    masks = torch.zeros(4, 5, 64, 64, dtype=torch.bool)
    masks[2:, :, 10:30, 20:40] = True
    facts = {"masks": masks, "labels": torch.tensor([0, 0, 1, 1]), "masked": torch.ones(4, dtype=torch.bool)}
    fitted = []
    for partners, tokens in (((a, b), (own, of_a, of_b)), ((b, a), (own, of_b, of_a))):
        head = head_of(first, *partners)
        data = TrainingSet(tokens=list(torch.cat(tokens, -1)), identity=0, **facts)
        history = fit_head(head, data, RECIPE, seed=1)
        with torch.no_grad():
            fitted.append((history, head(torch.cat(tokens, -1)[:, 0].transpose(0, 1).unbind(), head.text())))
    (history, scores), (swapped, others) = fitted
    for one, other in zip(history, swapped, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    for one, other in zip(scores, others, strict=True):
        assert float((one - other).abs().max()) < 1e-4


def test_one_tower_keeps_one_set(first):
    assert not isinstance(Head(Recipe(image_size=64), first, "Brain").adapters, TowerAdapters)
