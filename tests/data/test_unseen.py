import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from scipy import ndimage

from madclip.data.unseen import LostLesions, lost_lesions, said_of_patches
from madclip.recipe import View


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(20, 120), st.integers(20, 120), st.integers(4, 40))
def test_lost_lesions_are_those_of_which_pillow_keeps_no_pixel(seed, height, width, size):
    mask = np.random.default_rng(seed).random((height, width)) < 0.03
    lesions, count = ndimage.label(mask, np.ones((3, 3)))
    lost = []
    for number in range(1, count + 1):
        lesion = Picture.fromarray(lesions == number)
        if not np.asarray(lesion.resize((size, size), Picture.Resampling.NEAREST)).any():
            rows, columns = np.nonzero(lesions == number)
            lost.append(max(np.ptp(rows), np.ptp(columns)) + 1)
    found = lost_lesions(mask, View(size))
    expected = LostLesions(len(lost), count, max(lost), max(height, width)) if lost else None
    assert found == expected


def test_a_padded_view_keeps_the_whole_image():
    mask = np.zeros((100, 400), bool)
    mask[50, 20:380] = True
    assert lost_lesions(mask, View(40, "pad")) in (None, LostLesions(1, 1, 360, 400))
    inner = np.asarray(Picture.fromarray(mask).resize((40, 10), Picture.Resampling.NEAREST))
    assert (lost_lesions(mask, View(40, "pad")) is None) == inner.any()
    assert lost_lesions(np.zeros((9, 9), bool), View(40)) is None


def test_lost_lesions_are_said():
    assert str(LostLesions(1, 1, 6, 2048)) == "a 6 px lesion in 2,048 px is gone"
    assert str(LostLesions(2, 3, 6, 512)) == "a 6 px lesion in 512 px is gone (2 of 3)"
    assert (LostLesions(1, 1, 6, 9).everything, LostLesions(1, 2, 6, 9).everything) == (True, False)


@pytest.mark.parametrize(
    ("size", "patch", "rest", "take"),
    [
        (240, 14, "2 px at the right and at the bottom (0.8% of each side)", "238 or 252"),
        (255, 16, "15 px at the right and at the bottom (5.9% of each side)", "240 or 256"),
        (10, 16, "10 px at the right and at the bottom (100.0% of each side)", "16"),
    ],
)
def test_a_rim_that_is_not_seen_is_said(size, patch, rest, take):
    start = f"image_size {size} is no multiple of the patch of {patch} px"
    assert said_of_patches(size, patch) == f"{start}: {rest} are not seen; take {take}"


def test_whole_patches_are_not_worth_a_word():
    assert said_of_patches(240, 16) == said_of_patches(16, 16) == ""
