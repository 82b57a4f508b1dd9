"""The loop: order, balance, determinism, resuming, what the terms see."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from madclip import Recipe, load_backbone
from madclip.errors import CheckpointError
from madclip.head.head import Head
from madclip.training.cache import TokenCache
from madclip.training.encode import prepare
from madclip.training.fit import Checkpoint, epoch_order, fit_head
from madclip.training.shots import Shot

RECIPE = Recipe(variants=("identity", "flip-horizontal"), epochs=3, batch_size=4, image_size=64)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("stand-in", image_size=64, device="cpu")


def shots(normal=3, abnormal=3, masks="all"):
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(normal + abnormal):
        label = int(i >= normal)
        mask = torch.zeros(64, 64, dtype=torch.bool)
        mask[10:30, 20:40] = True
        wanted = label and (masks == "all" or (masks == "some" and i % 2))
        pixels = torch.rand(3, 64, 64, generator=generator)
        made.append(Shot(pixels, label, mask if wanted else None, f"{i + 1:064x}"))
    return made


def fitted(backbone, recipe=RECIPE, seed=0, data=None, **arguments):
    head = Head(recipe, backbone, "Brain", seed=seed)
    history = fit_head(head, data or prepare(shots(), backbone, recipe), recipe, seed=seed, **arguments)
    return head, history


def same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_an_epoch_is_balanced_and_complete(normal, abnormal, variants, epoch):
    labels = torch.tensor([0] * normal + [1] * abnormal)
    order = epoch_order(labels, variants, 7, epoch)
    drawn = labels[order[:, 0]]
    assert (drawn == 0).sum() == (drawn == 1).sum() == max(normal, abnormal) * variants
    assert {tuple(pair) for pair in order.tolist()} == set(itertools.product(range(normal + abnormal), range(variants)))
    assert torch.equal(order, epoch_order(labels, variants, 7, epoch))


def test_same_seed_same_bytes_and_other_seed_other_bytes(backbone):
    assert same(fitted(backbone)[0], fitted(backbone)[0])
    assert not same(fitted(backbone)[0], fitted(backbone, seed=1)[0])


@pytest.mark.parametrize("stop", [1, 3, 4, 7])
def test_resumed_after_any_step_is_as_if_undisturbed(backbone, tmp_path, stop):
    recipe = RECIPE.replace(schedule="cosine")
    whole, history = fitted(backbone, recipe)
    state = tmp_path / "state"

    def kill(stage, done, total, *, loss=None, part=""):
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(backbone, recipe, progress=kill, checkpoint=Checkpoint(state, {"seed": 0}, seconds=0.0))
    resumed, again = fitted(backbone, recipe, checkpoint=Checkpoint(state, {"seed": 0}, resume=True, seconds=0.0))
    assert same(whole, resumed)
    assert again == history


def test_state_of_another_fit_is_refused(backbone, tmp_path):
    state = tmp_path / "state"
    fitted(backbone, checkpoint=Checkpoint(state, {"seed": 0}, seconds=0.0))
    with pytest.raises(CheckpointError, match=r"another fit \(seed"):
        fitted(backbone, checkpoint=Checkpoint(state, {"seed": 1}, resume=True))
    state.write_bytes(b"not a state")
    with pytest.raises(CheckpointError, match="not the state of a fit"):
        fitted(backbone, checkpoint=Checkpoint(state, {"seed": 0}, resume=True))


def test_loss_falls(backbone):
    history = fitted(backbone, RECIPE.replace(epochs=12))[1]
    totals = [sum(epoch.values()) for epoch in history]
    assert totals[-1] < 0.9 * totals[0]


@pytest.mark.parametrize(("masks", "expected"), [("all", [1] * 6), ("some", [1, 1, 1, 1, 0, 1]), ("none", [0] * 6)])
def test_who_takes_part_in_dice_and_focal(backbone, masks, expected):
    data = prepare(shots(masks=masks), backbone, RECIPE)
    assert data.masked.int().tolist() == expected
    history = fitted(backbone, data=data)[1]
    assert (history[0]["dice"] > 0) == (masks != "none")


def test_unmasked_abnormal_images_do_not_touch_the_segmentation_head(backbone):
    """Its gradient comes from the images that take part alone."""
    data = prepare(shots(masks="some"), backbone, RECIPE)
    head = Head(RECIPE, backbone, "Brain")
    tokens = torch.stack([t[0] for t in data.tokens]).float()
    which = data.masked.nonzero()[:, 0]
    loss = head.loss(head(tokens.unbind(1), head.text()), data.labels, data.masks[which, 0], which)
    kept = data.masked
    alone = head.loss(head(tokens[kept].unbind(1), head.text()), data.labels[kept], data.masks[kept, 0])
    assert torch.allclose(loss.dice, alone.dice, atol=1e-6)
    assert torch.allclose(loss.focal, alone.focal, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"learned_prompts": False},
        {"use_objective": False},
        {"dual_branch": False},
        {"contrast": False},
        {"loss": "softmax"},
        {"separate_heads": False},
    ],
    ids="abcdef",
)
def test_every_ablation_is_one_field_and_changes_the_fit(backbone, change):
    recipe = RECIPE.replace(epochs=1)
    data = prepare(shots(), backbone, recipe)
    base, changed = fitted(backbone, recipe, data=data)[1], fitted(backbone, recipe.replace(**change), data=data)[1]
    assert base != changed
    assert all(torch.isfinite(torch.tensor(list(epoch.values()))).all() for epoch in changed)


def test_cached_tokens_are_the_computed_ones(backbone, tmp_path):
    cache = TokenCache(tmp_path / "tokens")
    fresh = prepare(shots(), backbone, RECIPE)
    stored, read = (prepare(shots(), backbone, RECIPE, cache=cache) for _ in range(2))
    for first, second, third in zip(fresh.tokens, stored.tokens, read.tokens, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
    assert len(cache.entries()) == 6
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in cache.entries())


def test_tokens_that_are_cached_need_no_pixel_variants(backbone, tmp_path, monkeypatch):
    cache = TokenCache(tmp_path / "tokens")
    first = prepare(shots(), backbone, RECIPE, cache=cache)
    monkeypatch.delattr("madclip.training.encode.make_variants")
    second = prepare(shots(), backbone, RECIPE, cache=cache)
    assert torch.equal(first.masks, second.masks)
    assert first.masks.any()


def test_a_damaged_cache_file_is_computed_anew(backbone, tmp_path):
    cache = TokenCache(tmp_path / "tokens")
    first = prepare(shots(), backbone, RECIPE, cache=cache)
    for path in cache.entries():
        path.write_bytes(path.read_bytes()[:100])
    second = prepare(shots(), backbone, RECIPE, cache=cache)
    assert all(torch.equal(a, b) for a, b in zip(first.tokens, second.tokens, strict=True))


def test_the_cache_keeps_to_its_limit_and_drops_the_oldest(tmp_path):
    cache = TokenCache(tmp_path / "tokens")
    cache.limit = 3 * 4096 * 4 + 1000
    for name in "abcd":
        cache.store(name, torch.full((4096,), float(ord(name))))
    assert cache.load("a") is None
    assert cache.load("d")[0] == ord("d")
    assert cache.size() <= cache.limit
    assert cache.clear() > 0
    assert cache.entries() == []


def test_keys_tell_recipes_and_backbones_apart(backbone, tmp_path):
    cache = TokenCache(tmp_path / "tokens")
    for recipe in (RECIPE, RECIPE.replace(normalise=False), RECIPE.replace(variants=("identity",))):
        prepare(shots(1, 1), backbone, recipe, cache=cache)
    assert len(cache.entries()) == 6
    prepare(shots(1, 1), backbone, RECIPE.replace(epochs=9, learning_rate=0.1), cache=cache)
    assert len(cache.entries()) == 6
