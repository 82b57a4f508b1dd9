"""A memory of normal patches: distances by hand, and that each image counts as much as any other."""

import pytest
import torch

from madclip.head.memory import MOST_PATCHES, NormalMemory, spread_out
from madclip.head.scorer import Readout
from madclip.head.zero_shot import ZeroShot

READOUT, MEAN = Readout("both", has_masks=False), Readout("mean", has_masks=False)


@pytest.fixture(scope="module")
def tokens(small_backbone):
    """Of five images, as noise."""
    rows, columns = small_backbone.grid
    shape = (5, len(small_backbone.spec.taps), small_backbone.spec.prefix_tokens + rows * columns)
    return torch.randn(*shape, small_backbone.spec.width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def new(small_recipe, small_backbone):
    def make(tokens, weight=0.0):
        return NormalMemory.of(small_recipe.replace(text_weight=weight), small_backbone, "Brain", tokens)

    return make


def test_distance_to_the_nearest_patch(tokens, new):
    memory = new(tokens[:4])
    own = memory.features(tokens)
    nearest = torch.stack([min((a - b).norm() for image in own[:4] for b in image) for a in own[4]])
    usual = [
        min((a - b).norm() for j, b in enumerate(image) if j != i) for image in own[:4] for i, a in enumerate(image)
    ]
    scale = torch.stack(usual).mean()
    scores, maps = memory.score(tokens[4:], MEAN)
    assert float(scores) == pytest.approx(float((nearest / (nearest + scale)).mean()), abs=1e-5)
    assert maps.shape == (1, 64, 64)
    assert float(memory.score(tokens[:1], MEAN)[0]) == pytest.approx(0, abs=1e-2)


def test_texts_have_their_weight(tokens, new, small_recipe, small_backbone):
    readout = Readout("max", has_masks=False)
    alone, texts = new(tokens[:4]), ZeroShot(small_recipe, small_backbone, "Brain")
    both = new(tokens[:4], weight=0.25)
    maps = 0.75 * alone.score(tokens[4:], MEAN)[1] + 0.25 * texts.score(tokens[4:], MEAN)[1]
    score, found = both.score(tokens[4:], readout)
    torch.testing.assert_close(found, maps)
    assert float(score) == pytest.approx(float(maps.max()))
    mean = 0.75 * alone.score(tokens[4:], MEAN)[0] + 0.25 * texts.score(tokens[4:], MEAN)[0]
    torch.testing.assert_close(both.score(tokens[4:], MEAN)[0], mean)
    assert "texts.text_features" in both.state_dict()
    assert alone.text().shape == (0, 2)


def test_held_out_is_a_memory_without_the_image_and_its_patient(tokens, new):
    memory = new(tokens, weight=0.2)
    scores = memory.held_out(tokens, ["a", "a", None, None, "b"], READOUT)
    for left_out, images in (([0, 1], [0, 1]), ([2], [2]), ([3], [3]), ([4], [4])):
        others = new(tokens[[i for i in range(5) if i not in left_out]], weight=0.2)
        others.scale.copy_(memory.scale)
        expected = others.score(tokens[images], READOUT)[0]
        assert [scores[i] for i in images] == pytest.approx(expected.tolist(), abs=1e-5)


def test_many_images_give_as_many_patches_each(small_recipe, small_backbone):
    patches = small_backbone.grid[0] * small_backbone.grid[1]
    few = NormalMemory(small_recipe, small_backbone, "Brain", images=3)
    many = NormalMemory(small_recipe, small_backbone, "Brain", images=MOST_PATCHES)
    assert len(few.patches) == 3 * patches
    assert len(many.patches) == MOST_PATCHES


def test_those_that_are_kept_lie_apart():
    rows = torch.tensor([[0.0], [0.1], [0.2], [5.0], [9.0]])
    kept = spread_out(rows, 3)
    assert sorted(kept.flatten().tolist()) == [0.0, 5.0, 9.0] or sorted(kept.flatten().tolist())[1:] == [5.0, 9.0]
    assert spread_out(rows, 5) is rows
