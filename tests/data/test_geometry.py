import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from madclip.data import fit_mask, fit_pixels, restore_map
from madclip.recipe import View

SIZES = st.tuples(st.integers(8, 90), st.integers(8, 90))
ASPECTS = st.sampled_from(["stretch", "pad"])


def content(height, width, size, aspect):
    """Where the image lies in the square, found by fitting an image of ones."""
    return fit_pixels(np.ones((3, height, width), np.float32), View(size, aspect))[0] > 0.5


@pytest.mark.parametrize("native", [(256, 256), (90, 300), (512, 200), (100, 120)])
def test_pixels_are_resized_as_pillow_does(native):
    rng = np.random.default_rng(0)
    values = rng.integers(80, 176, (*native, 3), dtype=np.uint8)
    expected = np.asarray(Picture.fromarray(values).resize((240, 240), Picture.Resampling.BICUBIC))
    ours = fit_pixels(values.transpose(2, 0, 1).astype(np.float32) / 255, View(240, "stretch"))
    assert ours.shape == (3, 240, 240)
    assert ours.dtype == torch.float32
    # Pillow rounds to 8 bits (and cuts off overshoot) after each of its two passes, we only once.
    assert np.abs(ours.numpy() - expected.transpose(2, 0, 1) / 255).max() <= 1.5 / 255


@pytest.mark.parametrize("aspect", ["stretch", "pad"])
def test_grey_images_are_fitted_as_coloured_ones(aspect):
    """One plane is scaled for all three; a plane that departs anywhere is scaled on its own."""
    view = View(24, aspect)
    planes = np.random.default_rng(0).random((1, 40, 31), np.float32).repeat(3, 0)
    grey = fit_pixels(planes, view)
    assert grey.is_contiguous()
    for changed in range(3):
        coloured = planes.copy()
        coloured[changed, -1, -1] = 1 - coloured[changed, -1, -1]
        fitted = fit_pixels(coloured, view)
        assert not torch.equal(fitted[changed], grey[changed])
        for kept in {0, 1, 2} - {changed}:
            assert torch.equal(fitted[kept], grey[kept])


@pytest.mark.parametrize("native", [(256, 256), (90, 300), (512, 200), (33, 57)])
def test_masks_are_resized_as_pillow_does(native):
    mask = np.random.default_rng(0).random(native) > 0.7
    expected = np.asarray(Picture.fromarray(mask).resize((240, 240), Picture.Resampling.NEAREST))
    ours = fit_mask(mask, View(240, "stretch"))
    assert ours.dtype == torch.bool
    np.testing.assert_array_equal(ours.numpy(), expected)


def test_16_bits_survive():
    ramp = np.linspace(0.5, 0.5 + 60 / 65535, 64, dtype=np.float32)
    fitted = fit_pixels(np.broadcast_to(ramp, (3, 64, 64)).copy(), View(32, "stretch"))
    assert len(fitted[0, 0].unique()) == 32


@given(native=SIZES, size=st.integers(8, 64), aspect=ASPECTS, seed=st.integers(0, 9))
def test_fitted_pixels_stay_in_range_and_padding_is_zero(native, size, aspect, seed):
    pixels = np.random.default_rng(seed).integers(0, 2, (3, *native)).astype(np.float32)
    fitted = fit_pixels(pixels, View(size, aspect))
    assert fitted.shape == (3, size, size)
    assert 0 <= fitted.min() <= fitted.max() <= 1
    inside = content(*native, size, aspect)
    assert (fitted[:, ~inside] == 0).all()
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    assert len(rows) * len(columns) == inside.sum()
    if aspect == "stretch":
        assert inside.all()
    else:
        assert max(len(rows), len(columns)) == size
        assert abs(len(rows) / len(columns) - native[0] / native[1]) * min(len(rows), len(columns)) <= 1 + 2 * max(
            native[0] / native[1], 1
        )
        assert abs(rows[0] - (size - 1 - rows[-1])) <= 1
        assert abs(columns[0] - (size - 1 - columns[-1])) <= 1


@given(native=SIZES, size=st.integers(8, 64), aspect=ASPECTS)
def test_a_mask_lies_where_its_image_lies(native, size, aspect):
    np.testing.assert_array_equal(fit_mask(np.ones(native, bool), View(size, aspect)), content(*native, size, aspect))
    assert not fit_mask(np.zeros(native, bool), View(size, aspect)).any()


@given(native=SIZES, size=st.integers(8, 64), aspect=ASPECTS, value=st.floats(0, 1, width=32))
def test_a_flat_map_stays_flat(native, size, aspect, value):
    restored = restore_map(torch.full((size, size), value), native, View(size, aspect))
    assert restored.shape == native
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, value, atol=1e-6)


@given(native=SIZES, size=st.integers(16, 64), aspect=ASPECTS, axis=st.sampled_from([0, 1]))
@settings(max_examples=60)
def test_there_and_back(native, size, aspect, axis):
    """A linear ramp over the image comes back as itself, but for the borders where interpolation is cut off."""
    positions = (np.arange(native[axis], dtype=np.float32) + 0.5) / native[axis]
    ramp = np.broadcast_to(positions[:, None] if axis == 0 else positions, native)
    back = restore_map(fit_pixels(np.stack([ramp] * 3), View(size, aspect))[0], native, View(size, aspect))
    inside = content(*native, size, aspect)
    shortest = min(*native, inside.sum(0).max().item(), inside.sum(1).max().item())
    assert np.abs(back - ramp).max() <= 1.5 / shortest
    middle = np.s_[native[0] // 4 : -native[0] // 4, native[1] // 4 : -native[1] // 4]
    if shortest >= 32:
        np.testing.assert_allclose(back[middle], ramp[middle], atol=4e-3)


@given(native=SIZES, size=st.integers(8, 64), aspect=ASPECTS, seed=st.integers(0, 9))
def test_flipping_the_map_flips_the_result(native, size, aspect, seed):
    anomaly_map = torch.rand(size, size, generator=torch.Generator().manual_seed(seed))
    inside = content(*native, size, aspect)
    if not torch.equal(inside, inside.flip(0)):
        return  # an odd remainder of the padding lies below: not symmetric
    ours = restore_map(anomaly_map.flip(0), native, View(size, aspect))
    np.testing.assert_allclose(ours, restore_map(anomaly_map, native, View(size, aspect))[::-1], atol=1e-5)


def test_same_size_changes_nothing():
    pixels = np.random.default_rng(0).random((3, 40, 40), np.float32)
    np.testing.assert_array_equal(fit_pixels(pixels, View(40, "pad")), pixels)
    np.testing.assert_array_equal(restore_map(torch.tensor(pixels[0]), (40, 40), View(40)), pixels[0])


def test_a_very_long_image_keeps_a_row():
    assert fit_pixels(np.ones((3, 8, 8000), np.float32), View(240, "pad")).sum().item() == pytest.approx(3 * 240)
    assert restore_map(torch.rand(240, 240), (8, 8000), View(240, "pad")).shape == (8, 8000)
