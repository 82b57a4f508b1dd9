from pathlib import Path

import numpy as np
import pytest
import torch

from madclip.data import make_variants
from madclip.errors import RecipeError
from madclip.recipe import ALL_VARIANTS, PAPER_VARIANTS

GOLDEN = Path(__file__).parents[1] / "golden" / "released_public.npz"
NAMES = {
    "identity": "identity",
    "rotate-22.5": "rotate -22.5",
    "rotate-11.25": "rotate -11.25",
    "rotate+11.25": "rotate 11.25",
    "rotate+22.5": "rotate 22.5",
    "translate++": "translate (0.1,0.1)",
    "translate-+": "translate (-0.1,0.1)",
    "translate--": "translate (-0.1,-0.1)",
    "translate+-": "translate (0.1,-0.1)",
    "zoom1.1": "zoom 1.1",
    "zoom1.15": "zoom 1.15",
    "zoom1.2": "zoom 1.2",
    "zoom1.3": "zoom 1.3",
    "flip-horizontal": "hflip",
    "flip-vertical": "vflip",
}


def variants(pixels, masks=None, names=ALL_VARIANTS, labels=None, jitter="per_image", seed=0):
    labels = torch.ones(len(pixels)) if labels is None else labels
    generator = torch.Generator().manual_seed(seed)
    return make_variants(pixels, masks, names, labels=labels, jitter=jitter, generator=generator)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as values:
        keys = ("image", "mask", "augment/image", "augment/mask", "augment/names")
        return {key: values[key] for key in keys}


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_variants_are_those_of_the_released_code(golden, name):
    block = list(golden["augment/names"]).index(NAMES[name])
    images, masks = torch.tensor(golden["image"][:2]), torch.tensor(golden["mask"][:2])
    ours, our_masks = variants(images, masks, [name])
    rows = slice(2 * block, 2 * block + 2)
    np.testing.assert_allclose(ours[0], golden["augment/image"][rows], atol=1e-4)
    np.testing.assert_allclose(our_masks[0], golden["augment/mask"][rows], atol=1e-4)


def test_the_order_of_the_released_code(golden):
    theirs = [*golden["augment/names"]]
    assert [NAMES.get(name, "colour jitter (random)") for name in ALL_VARIANTS] == theirs


def test_shapes_and_subsets():
    pixels = torch.rand(3, 3, 20, 28)
    all_pixels, none = variants(pixels)
    assert all_pixels.shape == (16, 3, 3, 20, 28)
    assert none is None
    assert 0 <= all_pixels.min() <= all_pixels.max() <= 1
    some, _ = variants(pixels, names=PAPER_VARIANTS)
    chosen = [ALL_VARIANTS.index(name) for name in PAPER_VARIANTS]
    torch.testing.assert_close(some, all_pixels[chosen], rtol=0, atol=0)


def test_an_image_does_not_depend_on_its_batch():
    pixels = torch.rand(3, 3, 20, 28)
    names = [name for name in ALL_VARIANTS if name != "jitter"]
    together, _ = variants(pixels, names=names)
    alone, _ = variants(pixels[1:2], names=names)
    torch.testing.assert_close(together[:, 1:2], alone)


def test_jitter_per_image():
    pixels = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.4 + 0.3
    masks = torch.rand(40, 1, 16, 16)
    [jittered], [moved] = variants(pixels, masks, ["jitter"])
    torch.testing.assert_close(moved, masks, rtol=0, atol=0)
    # Contrast about the image's own mean leaves that mean to brightness alone.
    brightness = jittered.mean((1, 2, 3)) / pixels.mean((1, 2, 3))
    contrast = jittered.std((1, 2, 3)) / pixels.std((1, 2, 3)) / brightness
    for factors in (brightness, contrast):
        assert 0.8 <= factors.min() < 0.87
        assert 1.13 < factors.max() <= 1.2
    assert abs(np.corrcoef(brightness, contrast)[0, 1]) < 0.5
    again, _ = variants(pixels, masks, ["jitter"])
    torch.testing.assert_close(again[0], jittered, rtol=0, atol=0)
    other, _ = variants(pixels, masks, ["jitter"], seed=1)
    assert (other[0] - jittered).abs().max() > 0.01


def test_jitter_per_class_is_one_draw_for_each_class():
    pixels = torch.full((6, 3, 8, 8), 0.5)
    labels = torch.tensor([1, 0, 1, 0, 0, 1])
    [jittered], _ = variants(pixels, names=["jitter"], labels=labels, jitter="per_class")
    normal, abnormal = jittered[labels == 0], jittered[labels == 1]
    assert normal.unique().numel() == abnormal.unique().numel() == 1
    assert normal.unique() != abnormal.unique()


def test_jitter_per_class_takes_the_mean_of_a_column():
    columns = torch.linspace(0.2, 0.8, 9).expand(2, 3, 7, 9)
    [jittered], _ = variants(columns, names=["jitter"], labels=torch.ones(2), jitter="per_class")
    # Columns are flat, so contrast does nothing and brightness is the only factor.
    ratios = jittered / columns
    torch.testing.assert_close(ratios, ratios[0, 0, 0, 0].expand_as(ratios))
    # About the image's mean, contrast would have widened or narrowed the ramp.
    [per_image], _ = variants(columns, names=["jitter"], jitter="per_image")
    assert (per_image / columns).std() > 0.005


def test_jitter_is_clipped():
    pixels = torch.rand(20, 3, 8, 8).round()
    for jitter in ("per_image", "per_class"):
        jittered, _ = variants(pixels, names=["jitter"], jitter=jitter)
        assert jittered.min() >= 0
        assert jittered.max() <= 1


def test_unknown_variants_are_named():
    with pytest.raises(RecipeError, match="unknown variant 'rotate90'; known: identity"):
        variants(torch.rand(1, 3, 8, 8), names=["identity", "rotate90"])
    with pytest.raises(RecipeError, match="no variant"):
        variants(torch.rand(1, 3, 8, 8), names=[])
