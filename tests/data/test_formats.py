"""Formats beside PNG, JPEG, TIFF and BMP; frames; chunks that do not matter; what is named when it is refused."""

import gzip
import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from PIL.PngImagePlugin import PngInfo

from madclip.data import read_image, read_mask
from madclip.data.readers import IMAGE_SUFFIXES, READERS, frames_of
from madclip.data.ref import ImageRef
from madclip.errors import DataError

rng = np.random.default_rng(5)
COLOUR = np.asarray(Picture.fromarray(rng.integers(0, 255, (5, 4, 3), dtype=np.uint8)).resize((40, 48)))
GREY = COLOUR[..., 0].copy()


def pixels(values, white=255):
    values = values if values.ndim == 3 else np.stack([values] * 3, axis=-1)
    return np.moveaxis(values.astype(np.float64) / white, -1, 0)


def check(path, values, white=255, **tolerance):
    np.testing.assert_allclose(read_image(path).pixels, pixels(values, white), **(tolerance or {"atol": 1e-6}))


@pytest.mark.parametrize("name", ["scan", "scan.jfif", "scan.jpe", "scan.dcm.png", "scan.tif"])
def test_the_content_decides(tmp_path, name):
    Picture.fromarray(COLOUR).save(tmp_path / name, format="JPEG", quality=95)
    with Picture.open(tmp_path / name) as picture:
        check(tmp_path / name, np.asarray(picture))
    assert {".jfif", ".jpe", ".webp", ".gif", ".jp2", ".npy", ".png", ".jpg", ".tif"} <= IMAGE_SUFFIXES


def test_webp(tmp_path):
    path = tmp_path / "a.webp"
    for values in (COLOUR, np.dstack([COLOUR, GREY])):
        Picture.fromarray(values).save(path, lossless=True, exact=True)
        check(path, values[..., :3])
    exif = Picture.Exif()
    exif[0x0112] = 6
    Picture.fromarray(COLOUR).save(path, lossless=True, exif=exif)
    check(path, np.rot90(COLOUR, -1))
    Picture.fromarray(COLOUR).save(path, quality=90)
    with Picture.open(path) as picture:
        check(path, np.asarray(picture.convert("RGB")))


def test_gif(tmp_path):
    path = tmp_path / "a.gif"
    for picture in (Picture.fromarray(COLOUR).quantize(64), Picture.fromarray(GREY)):
        picture.save(path)
        with Picture.open(path) as opened:
            check(path, np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba"])
@pytest.mark.parametrize("container", ["jp2", "j2k"])
def test_jpeg_2000(tmp_path, container, kind, bits):
    values = {"grey": GREY, "rgb": COLOUR, "rgba": np.dstack([COLOUR, GREY])}[kind]
    values = values if bits == 8 else (values.astype(np.uint16) * (2**bits - 1) // 255).astype(np.uint16)
    path = tmp_path / "a"
    path.write_bytes(
        imagecodecs.jpeg2k_encode(values, codecformat=container, bitspersample=bits, reversible=True, level=0)
    )
    image = read_image(path)
    assert image.depth == f"{bits}-bit"
    np.testing.assert_allclose(
        image.pixels, pixels(values if kind == "grey" else values[..., :3], 2**bits - 1), atol=1e-6
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 5, 7])
@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba"])
@pytest.mark.parametrize("container", ["jp2", "j2k"])
def test_jpeg_2000_of_few_bits(tmp_path, container, kind, bits):
    """The greatest value of the stated depth is white: 15 of 4 bits is 1, not the 240 / 255 of a shift to 8 bits."""
    grey = np.resize(np.arange(2**bits, dtype=np.uint8), (16, 20))
    values = {"grey": grey, "rgb": np.dstack([grey, grey[::-1], grey.T.reshape(16, 20)])}.get(kind)
    values = np.dstack([grey, grey[::-1], grey, np.full_like(grey, 2**bits - 1)]) if values is None else values
    path = tmp_path / "a"
    path.write_bytes(
        imagecodecs.jpeg2k_encode(values, codecformat=container, bitspersample=bits, reversible=True, level=0)
    )
    image = read_image(path)
    assert (image.depth, image.pixels.max()) == (f"{bits}-bit", 1)
    np.testing.assert_allclose(
        image.pixels, pixels(values if kind == "grey" else values[..., :3], 2**bits - 1), atol=1e-6
    )
    if kind == "grey":
        np.testing.assert_array_equal(read_mask(path), grey > 0) if bits in (1, 2, 4) else None
        tifffile.imwrite(path, grey, compression="jpeg2000", bitspersample=bits)
        check(path, grey, 2**bits - 1)


@pytest.mark.parametrize("what", ["different depths", "not RGB"])
def test_jpeg_2000_of_few_bits_that_is_no_plain_grey_or_colour(tmp_path, what):
    grey = np.resize(np.arange(16, dtype=np.uint8), (16, 20))
    data = bytearray(
        imagecodecs.jpeg2k_encode(np.dstack([grey] * 3) if what == "different depths" else grey, bitspersample=4)
    )
    if what == "different depths":
        data[data.index(b"\xff\x4f\xff\x51") + 45] = 7  # the second component's depth, less 1
    else:  # a palette of 16 colours of 8 bits (ISO/IEC 15444-1, I.5.3.4 and I.5.3.5)
        palette = struct.pack(">HB", 16, 3) + b"\7\7\7" + bytes(range(48))
        boxes = struct.pack(">I", 8 + len(palette)) + b"pclr" + palette
        boxes += struct.pack(">I", 20) + b"cmap" + b"\0\0\1\0\0\0\1\1\0\0\1\2"
        start = data.index(b"jp2h") - 4
        (length,) = struct.unpack_from(">I", data, start)
        data[start + length : start + length] = boxes
        struct.pack_into(">I", data, start, length + len(boxes))
    (tmp_path / "a.jp2").write_bytes(data)
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=rf"a\.jp2: .*{what}.*PNG"):
            read(tmp_path / "a.jp2")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "float32", "float64", "float16", "bool", "int16"])
def test_npy(tmp_path, dtype):
    path = tmp_path / "a.npy"
    numbers = np.dtype(dtype)
    values = GREY > 100 if dtype == "bool" else GREY.astype(numbers) / (1 if numbers.kind in "ui" else 256)
    values = values.astype(numbers)
    full = {"u": 256**numbers.itemsize - 1, "f": 1, "b": 1, "i": 65535}[numbers.kind]
    for stored in (values, values[..., None], np.dstack([values] * 3), np.asfortranarray(values)):
        np.save(path, stored)
        check(path, values.astype(np.float64) + (32768 if dtype == "int16" else 0), full)


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def lying(path, shape):
    np.save(path, GREY)
    data = path.read_bytes().replace(b"(48, 40)", shape)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: np.save(path, np.array([[Trap()]]), allow_pickle=True), "type object"),
        (lambda path: np.save(path, GREY.astype(complex)), "type complex128"),
        (lambda path: np.save(path, np.zeros((2, 48, 40))), "shape"),
        (lambda path: np.save(path, np.zeros(48)), "shape"),
        (lambda path: np.save(path, np.zeros((0, 40))), "nothing to read"),
        (lambda path: np.save(path, GREY.astype(np.int32)), "no known scale"),
        (lambda path: np.save(path, GREY.astype(np.float32)), "--range"),
        (lambda path: lying(path, b"(99999, 99999)"[:14]), "99999 x 99999"),
        (lambda path: lying(path, b"(480, 480)"), "damaged"),
        (lambda path: path.write_bytes(b"\x93NUMPY"), "damaged"),
        (lambda path: path.write_bytes(b"\x93NUMPY\1\0\x10\0{'descr': '|u1', "), "damaged"),
    ],
)
def test_bad_npy(tmp_path, write, said):
    write(tmp_path / "a.npy")
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "a.npy")
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'a.npy'}: ")


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_signed_tiff_has_the_full_range_of_its_depth(tmp_path, dtype):
    limits = np.iinfo(dtype)
    values = np.linspace(limits.min, limits.max, 160).astype(dtype).reshape(10, 16)
    tifffile.imwrite(tmp_path / "a.tif", values)
    image = read_image(tmp_path / "a.tif")
    assert image.depth == f"signed {8 * values.itemsize}-bit"
    check(tmp_path / "a.tif", values.astype(float) - limits.min, float(limits.max) - limits.min)


FRAMES = [
    np.asarray(Picture.fromarray(rng.integers(0, 255, (3, 3), dtype=np.uint8)).resize((20, 16))) for _ in range(4)
]


def save_frames(path):
    if path.suffix == ".tif":
        tifffile.imwrite(path, np.stack(FRAMES), photometric="minisblack")
        return
    first, *rest = [Picture.fromarray(frame).convert("RGB" if path.suffix != ".gif" else "L") for frame in FRAMES]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=rest, **options)


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".webp", ".png"])
def test_frames_are_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save_frames(path)
    assert frames_of(path) == tuple(ImageRef(path, number) for number in range(4))
    for number, frame in enumerate(FRAMES):
        check(ImageRef(path, number), frame)
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=rf"holds 4 frames; name one as a\{suffix}#0 to #3.*column frame"):
            read(path)
        with pytest.raises(DataError, match=r"#4: there is no such frame; they are numbered 0 to 3"):
            read(ImageRef(path, 4))


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png", "jpg", "bmp", "jp2", "npy"])
def test_one_image_has_one_name(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    np.save(path, GREY) if suffix == "npy" else Picture.fromarray(GREY).save(path)
    assert frames_of(path) == (ImageRef(path),)
    assert read_image(path).size == GREY.shape
    with pytest.raises(DataError, match="holds one image; name it without a frame"):
        read_image(ImageRef(path, 0))


def test_pages_of_a_mask(tmp_path):
    masks = np.stack([frame > 100 for frame in FRAMES]).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", masks, photometric="minisblack")
    for number in range(4):
        np.testing.assert_array_equal(read_mask(ImageRef(tmp_path / "a.tif", number)), masks[number] > 0)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def insert(data, *chunks):
    """Chunks behind the header of a PNG."""
    return data[:33] + b"".join(chunks) + data[33:]


LONG = rng.integers(0, 4, 3 * 2**20, dtype=np.uint8).tobytes()
CHUNKS = {
    "zTXt": chunk(b"zTXt", b"notes\0\0" + zlib.compress(LONG)),
    "iTXt": chunk(b"iTXt", b"notes\0\1\0\0\0" + zlib.compress(LONG)),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + zlib.compress(LONG)),
    "many": chunk(b"tEXt", b"notes\0" + b"x" * 2**20) * 70,
    "bomb": chunk(b"zTXt", b"notes\0\0" + zlib.compress(bytes(2**28))),
    "malformed": chunk(b"gAMA", b"") + chunk(b"pHYs", b"1") + chunk(b"iCCP", b"x\0\0garbage"),
    "wrong checksum": chunk(b"tEXt", b"notes\0text")[:-4] + b"0000",
    "unknown": chunk(b"teSt", bytes(10)),
}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", CHUNKS)
def test_ancillary_chunks_do_not_matter(tmp_path, name, bits):
    path, values = tmp_path / "a.png", COLOUR.astype(f"u{bits // 8}") * (257 if bits == 16 else 1)
    path.write_bytes(insert(imagecodecs.png_encode(values), CHUNKS[name]))
    check(path, COLOUR)
    exif = chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
    path.write_bytes(insert(imagecodecs.png_encode(values), CHUNKS[name], exif))
    check(path, np.rot90(COLOUR, -1))


def test_text_behind_the_pixels_does_not_matter(tmp_path):
    info = PngInfo()
    info.add_itxt("notes", "x" * 2**21, zip=True)
    Picture.fromarray(GREY).save(tmp_path / "a.png", pnginfo=info)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(GREY)[:-12] + data[data.index(b"iTXt") - 4 :])
    check(tmp_path / "a.png", GREY)
    check(tmp_path / "b.png", GREY)


def test_damaged_pixels_stay_damaged(tmp_path):
    data = bytearray(imagecodecs.png_encode(COLOUR))
    data[data.index(b"IDAT") + 40] ^= 255
    (tmp_path / "a.png").write_bytes(insert(bytes(data), CHUNKS["zTXt"]))
    with pytest.raises(DataError, match="damaged"):
        read_image(tmp_path / "a.png")


def webp_of(width, height):
    body = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + (width - 1).to_bytes(3, "little")
    body += (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def jp2_of(width, height):
    siz = struct.pack(">HHIIIIIIIIH", 41, 0, width, height, 0, 0, width, height, 0, 0, 1) + b"\x07\1\1"
    return b"\xff\x4f\xff\x51" + siz


BOMBS = {
    "frame": b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;",
    "webp": webp_of(2**24, 2**24),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
    "jp2": jp2_of(2**30, 2**30),
    "jpg": b"\xff\xd8\xff\xc0\0\x0b\x08" + struct.pack(">HH", 65000, 65000) + b"\1\1\x11\0\xff\xd9",
}


@pytest.mark.parametrize("name", BOMBS)
def test_sizes_are_checked_before_anything_is_decoded(tmp_path, name):
    (tmp_path / "a").write_bytes(BOMBS[name])
    with pytest.raises(DataError, match=r"megapixels|exceeds limit"):
        read_image(tmp_path / "a")


def test_a_frame_far_into_a_large_animation_is_refused(tmp_path):
    small = io.BytesIO()
    pictures = [Picture.new("L", (16, 16), shade) for shade in range(90)]
    pictures[0].save(small, format="GIF", save_all=True, append_images=pictures[1:])
    data = bytearray(small.getvalue())
    struct.pack_into("<HH", data, 6, 6000, 6000)
    (tmp_path / "a.gif").write_bytes(data)
    with pytest.raises(DataError, match="too many large frames"):
        read_image(ImageRef(tmp_path / "a.gif", 80))


def nifti(size, at, magic, order="<"):
    head = bytearray(max(size, 352))
    struct.pack_into(f"{order}i", head, 0, size)
    head[at : at + 4] = magic
    return bytes(head)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bytes(128) + b"DICM" + bytes(50), "DICOM"),
        (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", "a DICOM object without pixels"),
        (nifti(348, 344, b"n+1\0"), "a damaged NIfTI volume"),
        (nifti(348, 344, b"ni1\0", ">"), "half of a NIfTI pair"),
        (nifti(540, 4, b"n+2\0"), "a damaged NIfTI volume"),
        (gzip.compress(nifti(348, 344, b"n+1\0"), mtime=0), "a damaged NIfTI volume"),
        (gzip.compress(b"notes", mtime=0), "a gzip archive"),
        (b"%PDF-1.7", "a PDF"),
        (b"\0\0\0\x18ftypheic", "a HEIC photograph"),
        (b"\xff\xd8", "not a DICOM, PNG, JPEG"),
        (b"hello", "not a DICOM, PNG, JPEG"),
    ],
)
def test_what_is_refused_is_named(tmp_path, data, said):
    (tmp_path / "scan.png").write_bytes(data)
    for read in (read_image, read_mask, frames_of):
        with pytest.raises(DataError) as caught:
            read(tmp_path / "scan.png")
        assert str(caught.value).startswith(f"{tmp_path / 'scan.png'}: ")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


SAVED = ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "npy"]


@settings(deadline=None)
@given(cut=st.integers(0, 600), flip=st.integers(0, 2000), bit=st.integers(0, 7), kind=st.sampled_from(SAVED))
def test_damage_of_any_format_is_survived_or_named(tmp_path_factory, cut, flip, bit, kind):
    path = tmp_path_factory.getbasetemp() / "damaged"
    buffer = io.BytesIO()
    np.save(buffer, GREY) if kind == "npy" else Picture.fromarray(COLOUR).save(buffer, format=kind)
    data = bytearray(buffer.getvalue())
    data[flip % len(data)] ^= 1 << bit
    path.write_bytes(data[: max(1, len(data) - cut)])
    for read in (read_image, read_mask, frames_of):
        try:
            found = read(path)
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert len(found.pixels if read is read_image else found)


def test_every_reader_has_a_name_and_suffixes():
    names = [reader.name for reader in READERS]
    assert len(set(names)) == len(names)
    suffixes = [suffix for reader in READERS for suffix in reader.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes)
