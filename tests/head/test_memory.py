"""A memory of normal patches: distances by hand, and that each image counts as much as any other."""

import pytest
import torch
import torch.nn.functional as F

from madclip.head.memory import MOST_PATCHES, NormalMemory, spread_out
from madclip.head.scorer import Readout

READOUT = Readout("both", has_masks=False)


@pytest.fixture(scope="module")
def tokens(small_backbone):
    rows, columns = small_backbone.grid
    shape = (5, len(small_backbone.spec.taps), rows * columns, small_backbone.spec.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_distance_to_the_nearest_patch(tokens, small_recipe, small_backbone):
    memory = NormalMemory.of(small_recipe, small_backbone, tokens[:4])
    own = [memory.features(one[None])[0] for one in tokens]
    expected = torch.stack(
        [min((1 - F.cosine_similarity(a, b, dim=0)) / 2 for e in own[:4] for b in e) for a in own[4]]
    )
    scores, maps = memory.score(tokens[4:], Readout("mean", has_masks=False))
    assert float(scores) == pytest.approx(float(expected.mean()), abs=1e-6)
    assert maps.shape == (1, 64, 64)
    score, _ = memory.score(tokens[:1], Readout("mean", has_masks=False))
    assert float(score) == pytest.approx(0, abs=1e-6)


def test_held_out_is_a_memory_without_the_image_and_its_patient(tokens, small_recipe, small_backbone):
    memory = NormalMemory.of(small_recipe, small_backbone, tokens)
    scores = memory.held_out(tokens, ["a", "a", None, None, "b"], READOUT)
    without = NormalMemory.of(small_recipe, small_backbone, tokens[2:])
    expected = without.score(tokens[:2], READOUT)[0]
    assert scores[:2] == pytest.approx(expected.tolist(), abs=1e-6)
    alone = NormalMemory.of(small_recipe, small_backbone, tokens[[0, 1, 3, 4]])
    assert scores[2] == pytest.approx(float(alone.score(tokens[2:3], READOUT)[0]), abs=1e-6)


def test_many_images_give_as_many_patches_each(small_recipe, small_backbone):
    patches = small_backbone.grid[0] * small_backbone.grid[1]
    few = NormalMemory(small_recipe, small_backbone, images=3)
    many = NormalMemory(small_recipe, small_backbone, images=MOST_PATCHES)
    assert len(few.patches) == 3 * patches
    assert len(many.patches) == MOST_PATCHES


def test_those_that_are_kept_lie_apart():
    rows = torch.tensor([[0.0], [0.1], [0.2], [5.0], [9.0]])
    kept = spread_out(rows, 3)
    assert sorted(kept.flatten().tolist()) == [0.0, 5.0, 9.0] or sorted(kept.flatten().tolist())[1:] == [5.0, 9.0]
    assert spread_out(rows, 5) is rows
