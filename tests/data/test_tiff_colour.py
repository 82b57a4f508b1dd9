"""Every photometric of TIFF against Pillow's conversions and LittleCMS, in every layout that stores it."""

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image as Picture
from PIL import ImageCms

from madclip.data import read_image, read_mask
from madclip.errors import DataError

rng = np.random.default_rng(3)
RGB = np.asarray(Picture.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)).resize((48, 32)))
RGB = np.concatenate([RGB, np.broadcast_to(np.array([[[0, 0, 255]]], np.uint8), (32, 16, 3))], axis=1)
LAYOUTS = {
    "strips": {},
    "tiles": {"tile": (16, 16)},
    "big-endian": {"byteorder": ">"},
    "deflate": {"compression": "deflate", "predictor": False},
    "lzw": {"compression": "lzw"},
    "big-tiff": {"bigtiff": True},
}


def pixels(rgb, white=255):
    values = rgb if rgb.ndim == 3 else np.stack([rgb] * 3, axis=-1)
    return np.moveaxis(values.astype(np.float64) / white, -1, 0)


def write(path, values, photometric, layout="strips", *, separate=False, **more):
    options = dict(LAYOUTS[layout])
    with tifffile.TiffWriter(
        path, byteorder=options.pop("byteorder", None), bigtiff=options.pop("bigtiff", False)
    ) as to:
        if separate:
            values, options = np.moveaxis(values, -1, 0), {**options, "planarconfig": "separate"}
        to.write(values, photometric=photometric, **options, **more)


@pytest.mark.parametrize("separate", [False, True], ids=["chunky", "planar"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ycbcr_without_jpeg(tmp_path, layout, separate):
    coded = Picture.fromarray(RGB).convert("YCbCr")
    write(tmp_path / "a.tif", np.asarray(coded), "ycbcr", layout, separate=separate)
    expected = pixels(np.asarray(coded.convert("RGB")))
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").pixels, expected, atol=2.5 / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_ycbcr_is_brought_upright_once(tmp_path, orientation):
    coded = Picture.fromarray(RGB).convert("YCbCr")
    write(tmp_path / "a.tif", np.asarray(coded), "ycbcr", extratags=[(274, "H", 1, orientation, True)])
    write(tmp_path / "b.tif", np.asarray(coded.convert("RGB")), "rgb", extratags=[(274, "H", 1, orientation, True)])
    found, expected = (read_image(tmp_path / name).pixels for name in ("a.tif", "b.tif"))
    np.testing.assert_allclose(found, expected, atol=2.5 / 255)


def tiff_bytes(width, height, tags, data):
    """A TIFF of one strip, tag by tag: (number, type, values)."""
    entries, extra, sizes = [], b"", {1: "B", 3: "H", 4: "I"}
    tags = sorted([*tags, (256, 4, [width]), (257, 4, [height]), (279, 4, [len(data)]), (273, 4, [0])])
    start = 8 + 2 + 12 * len(tags) + 4
    for tag, kind, values in tags:
        packed = struct.pack(f"<{len(values)}{sizes[kind]}", *values)
        if len(packed) > 4:
            packed, extra = struct.pack("<I", start + len(extra)), extra + packed
        entries.append([tag, kind, len(values), packed.ljust(4, b"\0")])
    for entry in entries:
        if entry[0] == 273:
            entry[3] = struct.pack("<I", start + len(extra))
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + struct.pack("<I", 0) + extra + data


@pytest.mark.parametrize("factors", [(1, 1), (2, 1), (2, 2)])
def test_subsampled_ycbcr(tmp_path, factors):
    """Data units of TIFF 6.0, section 21: the luminances of a block, then its two chrominances."""
    across, down = factors
    blue = np.asarray(Picture.new("RGB", (1, 1), (0, 0, 255)).convert("YCbCr"))[0, 0]
    red = np.asarray(Picture.new("RGB", (1, 1), (200, 30, 60)).convert("YCbCr"))[0, 0]
    unit = [bytes([colour[0]] * (across * down) + [colour[1], colour[2]]) for colour in (blue, red)]
    data = (unit[0] * (8 // across) + unit[1] * (8 // across)) * (16 // down)
    tags = [(258, 3, [8, 8, 8]), (259, 3, [1]), (262, 3, [6]), (277, 3, [3]), (278, 4, [16]), (530, 3, list(factors))]
    (tmp_path / "a.tif").write_bytes(tiff_bytes(16, 16, tags, data))
    found = read_image(tmp_path / "a.tif").pixels
    np.testing.assert_allclose(found[:, 3, 2], np.array([0, 0, 255]) / 255, atol=2.5 / 255)
    np.testing.assert_allclose(found[:, 12, 13], np.array([200, 30, 60]) / 255, atol=2.5 / 255)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["cielab", "icclab"])
def test_lab(tmp_path, kind, bits, layout):
    muted = Picture.fromarray(RGB // 2 + 60)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(muted, *profiles, outputMode="LAB")
    # By default LittleCMS takes a table of 8 bits for such pictures, which is wrong by up to 28 of 255.
    exact = ImageCms.Flags.NOOPTIMIZE
    expected = pixels(np.asarray(ImageCms.profileToProfile(lab, *profiles[::-1], outputMode="RGB", flags=exact)))
    path = tmp_path / "pillow.tif"
    lab.save(path)  # Pillow writes CIELAB of 8 bits: the bytes of a* and b* are signed
    signed = tifffile.imread(path).astype(np.uint8)
    lightness, chroma = signed[..., :1].astype(float) / 255 * 100, signed[..., 1:].view(np.int8).astype(float)
    if kind == "cielab":
        stored = [lightness / 100 * (2**bits - 1), chroma * 2 ** (bits - 8) % 2**bits]
    else:
        stored = [lightness / 100 * 255 * 2 ** (bits - 8), (chroma + 128) * 2 ** (bits - 8)]
    values = np.rint(np.concatenate(stored, axis=-1)).astype(f"u{bits // 8}")
    write(tmp_path / "a.tif", values, kind, layout)
    image = read_image(tmp_path / "a.tif")
    assert image.depth == f"{bits}-bit"
    np.testing.assert_allclose(image.pixels, expected, atol=1.5 / 255)
    assert Picture.open(path).mode == "LAB"
    np.testing.assert_allclose(read_image(path).pixels, expected, atol=1.5 / 255)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("scale", [1, 257])
def test_palettes_of_both_scales(tmp_path, bits, scale):
    colours = rng.integers(0, 256, (3, 2**bits))
    indices = rng.integers(0, min(2**bits, 256), (16, 16)).astype(np.uint16 if bits == 16 else np.uint8)
    tags = [(258, 3, [bits]), (259, 3, [1]), (262, 3, [3]), (277, 3, [1]), (278, 4, [16])]
    data = indices.astype("<u2").tobytes() if bits == 16 else packed(indices, bits)
    tags.append((320, 3, (colours * scale).ravel().tolist()))
    (tmp_path / "a.tif").write_bytes(tiff_bytes(16, 16, tags, data))
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").pixels, pixels(colours.T[indices]), atol=1e-6)
    if bits <= 8 and scale == 257:
        with Picture.open(tmp_path / "a.tif") as picture:
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colours.T[indices])
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), indices != 0)


def packed(values, bits):
    lines = np.unpackbits(values[..., None], axis=-1)[..., -bits:].reshape(len(values), -1)
    return np.packbits(lines, axis=1).tobytes()


@pytest.mark.parametrize("separate", [False, True], ids=["chunky", "planar"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rgb_and_cmyk(tmp_path, layout, bits, separate):
    scale = 1 if bits == 8 else 257
    dtype = f"u{bits // 8}"
    cmyk = Picture.fromarray(RGB).convert("CMYK")
    ink = np.array(cmyk)
    ink[..., 3] = 40
    expected = np.asarray(Picture.fromarray(ink, "CMYK").convert("RGB"))
    write(tmp_path / "rgb.tif", RGB.astype(dtype) * scale, "rgb", layout, separate=separate)
    write(tmp_path / "cmyk.tif", ink.astype(dtype) * scale, "separated", layout, separate=separate)
    np.testing.assert_allclose(read_image(tmp_path / "rgb.tif").pixels, pixels(RGB), atol=1e-6)
    image = read_image(tmp_path / "cmyk.tif")
    assert image.depth == f"{bits}-bit"
    np.testing.assert_allclose(image.pixels, pixels(expected), atol=1.5 / 255)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_of_every_depth(tmp_path, bits, photometric):
    values = rng.integers(0, 2**bits, (16, 24))
    if bits in (8, 16):
        data = values.astype(f"<u{bits // 8}").tobytes()
    else:
        lines = (values[..., None] >> np.arange(bits)[::-1] & 1).reshape(16, -1).astype(np.uint8)
        data = np.packbits(lines, axis=1).tobytes()
    number = {"miniswhite": 0, "minisblack": 1}[photometric]
    tags = [(258, 3, [bits]), (259, 3, [1]), (262, 3, [number]), (277, 3, [1]), (278, 4, [16])]
    (tmp_path / "a.tif").write_bytes(tiff_bytes(24, 16, tags, data))
    white = 2**bits - 1
    expected = values if photometric == "minisblack" else white - values
    image = read_image(tmp_path / "a.tif")
    assert image.depth == f"{bits}-bit"
    np.testing.assert_allclose(image.pixels, pixels(expected, white), atol=1e-6)


def test_premultiplied_colours_are_divided_by_their_alpha(tmp_path):
    alpha = np.full((32, 64, 1), 128, np.uint8)
    alpha[:4] = 0
    stored = np.concatenate([np.rint(RGB * (alpha / 255)).astype(np.uint8), alpha], axis=-1)
    write(tmp_path / "a.tif", stored, "rgb", extrasamples=["assocalpha"])
    with Picture.open(tmp_path / "a.tif") as picture:
        expected = np.asarray(picture.convert("RGBA"))[..., :3]
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").pixels, pixels(expected), atol=2 / 255)
    write(tmp_path / "b.tif", np.concatenate([RGB, alpha], axis=-1), "rgb", extrasamples=["unassalpha"])
    np.testing.assert_allclose(read_image(tmp_path / "b.tif").pixels, pixels(RGB), atol=1e-6)


def test_jpeg_in_tiff_is_rgb(tmp_path):
    smooth = np.asarray(Picture.fromarray(RGB).resize((16, 16)).resize((64, 64)))
    for name, options in (("a", {}), ("b", {"tile": (32, 32)}), ("c", {"subsampling": (2, 2)})):
        tifffile.imwrite(tmp_path / f"{name}.tif", smooth, photometric="rgb", compression="jpeg", **options)
        with Picture.open(tmp_path / f"{name}.tif") as picture:
            expected = np.asarray(picture.convert("RGB"))
        np.testing.assert_allclose(read_image(tmp_path / f"{name}.tif").pixels, pixels(expected), atol=4 / 255)


GREY_16 = [(258, 3, [8]), (259, 3, [1]), (277, 3, [1]), (278, 4, [16])]
THREE = [(258, 3, [8, 8, 8]), (259, 3, [1]), (277, 3, [3]), (278, 4, [16])]


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ([*GREY_16, (262, 3, [4])], "MASK"),
        ([*GREY_16, (262, 3, [32803])], "CFA"),
        ([*THREE, (262, 3, [10])], "ITULAB"),
        ([*THREE, (262, 3, [32845])], "LOGLUV"),
        ([*THREE, (262, 3, [34892])], "LINEAR_RAW"),
        ([*THREE, (262, 3, [1])], "3 channels"),
        ([*GREY_16, (262, 3, [2])], "1 channels"),
        ([*THREE, (262, 3, [5])], "3 channels"),
        (GREY_16, "does not say what its values mean"),
        ([*GREY_16, (262, 3, [3])], "colour map"),
    ],
)
def test_other_kinds_are_refused(tmp_path, tags, said):
    (tmp_path / "a.tif").write_bytes(tiff_bytes(16, 16, tags, bytes(range(256)) * 3))
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "a.tif")
    assert str(caught.value).startswith(f"{tmp_path / 'a.tif'}: ")
    assert said in str(caught.value)


def test_inks_other_than_cmyk_and_deep_ycbcr_are_refused(tmp_path):
    tags = [(258, 3, [8] * 4), (259, 3, [1]), (262, 3, [5]), (277, 3, [4]), (278, 4, [16]), (332, 3, [2])]
    (tmp_path / "a.tif").write_bytes(tiff_bytes(16, 16, tags, bytes(1024)))
    with pytest.raises(DataError, match="inks other than CMYK"):
        read_image(tmp_path / "a.tif")
    write(tmp_path / "b.tif", RGB.astype(np.uint16), "ycbcr")
    with pytest.raises(DataError, match="YCbCr of 16 bits"):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize(
    ("compression", "encode"),
    [(7, imagecodecs.jpeg_encode), (34712, imagecodecs.jpeg2k_encode), (34933, imagecodecs.png_encode)],
)
def test_a_strip_that_hides_a_larger_image_is_refused(tmp_path, compression, encode):
    tags = [(258, 3, [8]), (259, 3, [compression]), (262, 3, [1]), (277, 3, [1]), (278, 4, [16])]
    (tmp_path / "a.tif").write_bytes(tiff_bytes(16, 16, tags, bytes(encode(np.zeros((600, 900), np.uint8)))))
    with pytest.raises(DataError, match="900 x 600 pixels in a smaller page"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("photometric", ["minisblack", "ycbcr", "subsampled"])
@pytest.mark.parametrize("compression", [1, 8])
def test_a_page_that_promises_more_than_it_has(tmp_path, compression, photometric):
    """More strips than there are, and a strip with less than its size asks for."""
    grey = photometric == "minisblack"
    data = bytes(range(256)) * (1 if grey else 3)
    data = data[: 16 * 16 * 3 // 2] if photometric == "subsampled" else data
    data = zlib.compress(data) if compression == 8 else data
    tags = [(258, 3, [8] * (1 if grey else 3)), (259, 3, [compression]), (262, 3, [1 if grey else 6])]
    tags += [(277, 3, [1 if grey else 3]), (530, 3, [2, 2] if photometric == "subsampled" else [1, 1])]
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_bytes(16, 16, [*tags, (278, 4, [16])], data))
    assert read_image(path).size == (16, 16)
    for height, rows, said in ((64, 16, "1 of 4 strips"), (64, 64, "damaged")):
        path.write_bytes(tiff_bytes(16, height, [*tags, (278, 4, [rows])], data))
        with pytest.raises(DataError, match=said):
            read_image(path)


def test_huge_tiles_and_unknown_compressions_are_refused(tmp_path):
    tags = [(258, 3, [8]), (259, 3, [1]), (262, 3, [1]), (277, 3, [1]), (278, 4, [16])]
    tiled = [*tags, (322, 4, [2**16]), (323, 4, [2**16]), (324, 4, [8]), (325, 4, [256])]
    (tmp_path / "a.tif").write_bytes(tiff_bytes(16, 16, tiled, bytes(256)))
    with pytest.raises(DataError, match="65536 x 65536"):
        read_image(tmp_path / "a.tif")
    tags[1] = (259, 3, [34887])
    (tmp_path / "a.tif").write_bytes(tiff_bytes(16, 16, tags, bytes(256)))
    with pytest.raises(DataError, match="compressed by LERC"):
        read_image(tmp_path / "a.tif")


def test_planes_that_are_no_pages_are_refused(tmp_path):
    stack = np.zeros((5, 16, 16), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, truncate=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "b.tif", stack, photometric="minisblack", truncate=True)
    for name in ("a.tif", "b.tif"):
        with pytest.raises(DataError, match=r"shape \(5, 16, 16\)"):
            read_image(tmp_path / name)


def test_thumbnails_are_no_pages(tmp_path):
    grey = np.asarray(Picture.fromarray(RGB).convert("L"))
    with tifffile.TiffWriter(tmp_path / "a.tif") as to:
        to.write(grey[::4, ::4].copy(), subfiletype=1, photometric="minisblack")
        to.write(grey, photometric="minisblack")
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").pixels, pixels(grey), atol=1e-6)


def test_a_page_that_points_to_itself(tmp_path):
    data = bytearray(tiff_bytes(16, 16, [*GREY_16, (262, 3, [1])], bytes(range(256))))
    (count,) = struct.unpack_from("<H", data, 8)
    struct.pack_into("<I", data, 10 + 12 * count, 8)
    (tmp_path / "a.tif").write_bytes(data)
    assert read_image(tmp_path / "a.tif").size == (16, 16)
