"""Images and masks that Python code holds are read as files of the same values are."""

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from PIL import ImageCms

from madclip.data import read_image
from madclip.data.arrays import read_pixels, read_region
from madclip.data.ref import ImageRef
from madclip.errors import DataError
from madclip.recipe import View

rng = np.random.default_rng(1)
COLOUR = np.asarray(Picture.fromarray(rng.integers(0, 255, (5, 4, 3), dtype=np.uint8)).resize((20, 16)))
GREY = COLOUR[..., 0].copy()
VIEW = View(32)


@pytest.mark.parametrize("grey_range", ["file", "0,100", "p5,p95"])
@pytest.mark.parametrize("values", [GREY, COLOUR, GREY.astype(np.uint16) * 256, GREY / 255, COLOUR / np.float32(255)])
def test_arrays_and_tensors_are_read_as_files_are(tmp_path, values, grey_range):
    view = View(32, grey_range=grey_range)
    np.save(tmp_path / "a.npy", values)
    expected = read_image(tmp_path / "a.npy", grey_range).pixels
    forms = [tmp_path / "a.npy", str(tmp_path / "a.npy"), ImageRef(tmp_path / "a.npy"), values]
    if values.ndim == 2:
        forms += [values[..., None], torch.from_numpy(values.copy()), torch.from_numpy(values.copy())[None]]
    else:
        forms.append(torch.from_numpy(values.copy()).permute(2, 0, 1))
    for form in forms:
        np.testing.assert_array_equal(read_pixels(form, view), expected)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "F", "La", "RGBa"]
)
def test_pictures_of_every_mode(mode):
    source = Picture.fromarray(COLOUR)
    if mode == "I;16":
        picture, expected = Picture.fromarray(GREY.astype(np.uint16) * 257), np.dstack([GREY / 255] * 3)
    elif mode == "F":
        picture = Picture.fromarray(GREY.astype(np.float32) / 255)
        expected = np.dstack([GREY / 255] * 3)
    else:
        through = {"La": "LA", "RGBa": "RGBA"}.get(mode)
        picture = source.convert(through).convert(mode) if through else source.convert(mode)
        expected = np.asarray((picture.convert(through) if through else picture).convert("RGB")) / 255
    found = read_pixels(picture, VIEW)
    np.testing.assert_allclose(np.moveaxis(found, 0, -1), expected, atol=1e-6)


def test_a_picture_in_cielab():
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    muted = Picture.fromarray(COLOUR // 3 + 80)
    lab = ImageCms.profileToProfile(muted, *profiles, outputMode="LAB")
    np.testing.assert_allclose(np.moveaxis(read_pixels(lab, VIEW), 0, -1), np.asarray(muted) / 255, atol=8 / 255)


def test_a_picture_that_was_opened_is_upright_and_at_its_frame(tmp_path):
    exif = Picture.Exif()
    exif[0x0112] = 6
    Picture.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    with Picture.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(read_pixels(picture, VIEW), read_image(tmp_path / "a.png").pixels)
    pages = [Picture.fromarray(GREY), Picture.fromarray(255 - GREY)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with Picture.open(tmp_path / "a.tif") as picture:
        picture.seek(1)
        np.testing.assert_allclose(read_pixels(picture, VIEW)[0], (255 - GREY) / 255, atol=1e-7)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (object(), "not an image"),
        (np.array(["a"]), "not an image"),
        (np.zeros((3, 16, 16)), "shape"),
        (np.zeros((16, 16, 4)), "shape"),
        (torch.zeros(16, 16, 3), "shape"),
        (torch.zeros(1, 3, 16, 16), "shape"),
        (torch.zeros(3, 16, 16, dtype=torch.complex64), "not an image"),
        (np.zeros((16, 16), np.int64), "no known scale"),
        (np.full((16, 16), 2.0), "outside|rescale"),
        (np.full((16, 16), np.nan), "NaN"),
        (np.zeros((4, 16)), "at least 8"),
        (Picture.new("L", (4, 4)), "at least 8"),
    ],
)
def test_what_is_no_image(image, said):
    with pytest.raises(DataError, match=said):
        read_pixels(image, VIEW)


LESION = GREY > 120


@pytest.mark.parametrize(
    "mask",
    [
        LESION,
        LESION.astype(np.uint8) * 128,
        LESION * 3,
        LESION.astype(float),
        torch.from_numpy(LESION),
        torch.from_numpy(LESION)[None],
        Picture.fromarray(LESION),
        Picture.fromarray(LESION.astype(np.uint8) * 255),
        Picture.fromarray(LESION.astype(np.uint8)),
    ],
)
def test_masks(mask):
    np.testing.assert_array_equal(read_region(mask), LESION)


def test_ambiguous_masks():
    for mask in (GREY, torch.from_numpy(GREY), Picture.fromarray(GREY), GREY / 255):
        with pytest.raises(DataError, match="not a mask"):
            read_region(mask)
    alpha = Picture.fromarray(np.dstack([COLOUR, LESION.astype(np.uint8) * 255]))
    with pytest.raises(DataError, match="transparency varies"):
        read_region(alpha)
