"""Reads mutated scanner files in a process of its own: `python mutants.py FOLDER FIRST COUNT`.

Prints how many were read and how many refused; anything but these two ends it with a traceback.
"""

import gzip
import io
import random
import re
import resource
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

sys.path.insert(0, str(Path(__file__).parents[1]))
from data.scanner import dicom, sequence
from madclip.data import read_image, read_mask
from madclip.data.readers import frames_of
from madclip.data.series import facts_of, sorted_series
from madclip.errors import DataError

MEMORY = 10**9
VALUES = np.random.default_rng(0).integers(0, 4095, (48, 40)).astype(np.uint16)
WHERE = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}
NUMBERS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
TEXTS = (
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "NumberOfFrames", "PixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PhotometricInterpretation", "VOILUTFunction"),
)
WORDS = (
    *(
        "",
        "0",
        "-1",
        "1e308",
        "nan",
        "9999999999",
        "abc",
        "0.0000001",
        "MONOCHROME1",
        "PALETTE COLOR",
        "RGB",
        "SIGMOID",
    ),
    *("YBR_FULL", "1\\2", "0\\0\\0", "1\\0\\0\\0\\1\\0"),
)


def made(kind):
    """A valid data set of a kind."""
    one = dicom(
        VALUES, BitsStored=12, WindowCenter=1000, WindowWidth=2000, RescaleSlope=1, RescaleIntercept=-1024, **WHERE
    )
    if kind == "frames":
        one = dicom(np.stack([VALUES] * 3), NumberOfFrames=3, BitsStored=12)
        one.SharedFunctionalGroupsSequence = sequence(PixelMeasuresSequence=sequence(PixelSpacing=[1, 1]))
    elif kind == "colour":
        one = dicom(np.dstack([VALUES % 256] * 3).astype(np.uint8))
    elif kind == "deflated":
        one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    elif kind in COMPRESSED:
        one.compress(COMPRESSED[kind], generate_instance_uid=False)
    return one


COMPRESSED = {"rle": RLELossless, "jpeg-ls": JPEGLSLossless, "jpeg 2000": JPEG2000Lossless}
KINDS = ("plain", "frames", "colour", "deflated", *COMPRESSED, "nifti", "nifti.gz", "nifti header", "nrrd", "mha")


def in_tags(kind, dice):
    """A file whose header parses still, with one to three values that lie."""
    one = made(kind)
    for _ in range(dice.randint(1, 3)):
        if dice.random() < 0.5:
            element = one.data_element(dice.choice(NUMBERS))
            if element is not None:
                element._value = dice.choice((0, 1, 2, 3, 7, 8, 13, 16, 32, 255, 4096, 65535))
        else:
            name = dice.choice(TEXTS)
            setattr(one, name, dice.choice(WORDS)) if name not in one else None
            one.data_element(name)._value = dice.choice(WORDS)
    buffer = io.BytesIO()
    one.save_as(buffer, enforce_file_format=True)
    return bytearray(buffer.getvalue())


def nifti(kind, dice):
    """A volume with some bytes of its header, or of all of it, changed."""
    image = nibabel.Nifti1Image(np.stack([VALUES] * 9, axis=-1).astype(np.int16), np.diag([1, 2, 3, 1]))
    data = bytearray(image.to_bytes())
    end = 352 if kind == "nifti header" or dice.random() < 0.5 else len(data)
    for _ in range(dice.randint(1, 4)):
        data[dice.randrange(end)] = dice.randrange(256)
    return bytearray(gzip.compress(bytes(data))) if kind == "nifti.gz" else data


def with_text(kind, dice):
    """A volume with a header of text, with some bytes or numbers of it changed."""
    end = b"endian: little\n\n" if kind == "nrrd" else b"ElementDataFile = LOCAL\n"
    head = TEXT_HEADERS[kind]
    for _ in range(dice.randint(0, 2)):
        numbers = [found.span() for found in re.finditer(rb"-?\d+", head[8:])]
        first, last = (8 + place for place in dice.choice(numbers))
        head = head[:first] + dice.choice(WORDS).encode() + head[last:]
    data = bytearray(head + end + np.stack([VALUES] * 9).astype("<i2").tobytes())
    for _ in range(dice.randint(0, 3)):
        data[dice.randrange(len(head))] = dice.randrange(256)
    return data


TEXT_HEADERS = {
    "nrrd": b"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 40 48 9\n"
    b"space directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (4,5,6)\nencoding: raw\n",
    "mha": b"ObjectType = Image\nNDims = 3\nBinaryData = True\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    b"Offset = 4 5 6\nElementSpacing = 1 2 3\nDimSize = 40 48 9\nElementType = MET_SHORT\n",
}


def mutant(seed):
    """The bytes of a mutated file, the same for the same seed."""
    dice = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    if kind.startswith("nifti"):
        data = nifti(kind, dice)
    elif kind in TEXT_HEADERS:
        data = with_text(kind, dice)
    elif dice.random() < 0.5:
        try:
            return in_tags(kind, dice)
        except (ValueError, TypeError, AttributeError, OverflowError, KeyError, pydicom.errors.BytesLengthException):
            data = bytearray(PLAIN)  # pydicom does not write such a value
    else:
        buffer = io.BytesIO()
        made(kind).save_as(buffer, enforce_file_format=True)
        data = bytearray(buffer.getvalue())
    for _ in range(dice.randint(1, 8)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return data[: dice.randrange(len(data))] if dice.random() < 0.1 else data


def look(path):
    """Does with a file what a user does: list, sort, read as an image and as a mask."""
    facts = facts_of(path)
    sorted_series([facts] if facts else [])
    for ref in frames_of(path)[:2]:
        assert np.isfinite(read_image(ref, "data").pixels).all()
        read_image(ref)
        with suppress(DataError):  # grey values are no mask
            read_mask(ref)


def main():
    """Read the mutants, and say what became of them."""
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    path = folder / "mutant"
    found = {"read": 0, "refused": 0}
    for seed in range(first, first + count):
        path.write_bytes(mutant(seed))
        print(seed, file=sys.stderr, flush=True)
        try:
            look(path)
        except DataError as error:
            said = str(error)
        else:
            found["read"] += 1
            continue
        assert said.startswith(str(path)), said
        assert "\n" not in said
        found["refused"] += 1
    # Of this program alone: ru_maxrss would begin at what the process that started it takes.
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    assert peak is None or int(peak[1]) * 1024 < MEMORY, peak
    print(found["read"], found["refused"])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (8 * MEMORY, 8 * MEMORY))
    with io.BytesIO() as plain:
        made("plain").save_as(plain, enforce_file_format=True)
        PLAIN = plain.getvalue()
    main()
