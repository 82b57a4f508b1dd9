"""NRRD and MetaImage: volumes with a header of plain text before the voxels, in one file."""

from __future__ import annotations

import io
import re
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.protocol import UNREADABLE
from madclip.data.readers.volume import Volume, VolumeReader, check_geometry
from madclip.errors import DataError, MissingExtraError
from madclip.files import until_changed

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

MAX_HEADER = 2**16
"""Bytes of a header; what is longer is none."""
_LPS = np.diag([-1.0, -1.0, 1.0])
"""From (left, posterior, superior), as ITK has it, to (right, anterior, superior), as NIfTI has it."""
_SPACES = {
    "right-anterior-superior": np.eye(3),
    "ras": np.eye(3),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0]),
    "left-posterior-superior": _LPS,
    "lps": _LPS,
}
"""From the directions in which an NRRD file has its axes to right, anterior, superior."""
_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    "float": "f4",
    "double": "f8",
}
_META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_META_START = re.compile(rb"(ObjectType\s*=\s*Image|NDims\s*=)", re.IGNORECASE)


class NRRD(VolumeReader):
    """NRRD with its voxels in the same file, raw or compressed by gzip."""

    name = "NRRD"
    suffixes = (".nrrd", ".nhdr")

    def recognises(self, head: bytes, path: Path) -> bool:  # noqa: ARG002  (the protocol's)
        """Whether a file begins with the magic word."""
        return head.startswith(b"NRRD000")

    def open(self, path: Path) -> Volume:
        """See `VolumeReader.open`."""
        return _opened_nrrd(path)


class MetaImage(VolumeReader):
    """MetaImage with its voxels in the same file, raw or compressed."""

    name = "MetaImage"
    suffixes = (".mha", ".mhd")

    def recognises(self, head: bytes, path: Path) -> bool:  # noqa: ARG002  (the protocol's)
        """Whether a file begins with one of the two lines that such headers begin with."""
        return _META_START.match(head) is not None

    def open(self, path: Path) -> Volume:
        """See `VolumeReader.open`."""
        return _opened_meta(path)


@until_changed(2)
def _opened_nrrd(path: Path) -> Volume:
    try:
        import nrrd
    except ImportError:
        raise MissingExtraError.of("NRRD volumes", "dicom") from None
    try:
        text, start = _head(path, rb"\r?\n\r?\n")
        return _nrrd(path, nrrd.read_header(io.BytesIO(text)), start)
    except (*UNREADABLE, nrrd.NRRDError) as error:
        raise DataError(f"{path}: a damaged NRRD volume ({type(error).__name__})") from None


def _nrrd(path: Path, header: dict[str, Any], start: int) -> Volume:
    """The volume of a header as pynrrd reads it, whose voxels begin at byte `start`."""
    if "data file" in header or "datafile" in header:
        raise DataError(f"{path}: its voxels are in another file; save the volume as one file, .nrrd")
    turn, ways = _SPACES.get(str(header.get("space", "")).lower()), header.get("space directions")
    if turn is None or ways is None or "space origin" not in header:
        raise DataError(f"{path}: its header does not say how it lies in the patient (space, directions and origin)")
    if any(unit not in ("mm", "") for unit in header.get("space units", ())):
        raise DataError(f"{path}: its lengths are not in millimetres (space units)")
    if any(int(header.get(name, 0)) for name in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise DataError(f"{path}: its voxels do not follow its header at once (line skip or byte skip)")
    if not int(header["dimension"]) == len(ways) == len(header["sizes"]) == 3:
        raise DataError(f"{path}: volumes of three axes with one value each are read")
    encoding = str(header["encoding"]).lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise DataError(f"{path}: voxels in the encoding {encoding[:20]!r} are not read; save it as raw or gzip")
    axes = turn @ np.array([np.asarray(way, float) for way in ways]).T
    affine = _affine(axes, turn @ np.asarray(header["space origin"], float))
    dtype = _dtype(path, _NRRD_TYPES, header["type"], big=header.get("endian") == "big")
    return _volume(path, start, header["sizes"], dtype, affine, packed=encoding != "raw")


@until_changed(2)
def _opened_meta(path: Path) -> Volume:
    try:
        text, start = _head(path, rb"ElementDataFile[ \t]*=[^\n]*\n")
        pairs = (line.partition("=") for line in text.decode("ascii", "replace").splitlines())
        return _meta(path, {name.strip(): value.strip() for name, _, value in pairs}, start)
    except UNREADABLE as error:
        raise DataError(f"{path}: a damaged MetaImage volume ({type(error).__name__})") from None


def _meta(path: Path, header: dict[str, str], start: int) -> Volume:
    """The volume of a MetaImage header, whose voxels begin at byte `start`."""
    if header["ElementDataFile"].upper() != "LOCAL":
        raise DataError(f"{path}: its voxels are in another file; save the volume as one file, .mha")
    ways = next((header[name] for name in ("TransformMatrix", "Rotation", "Orientation") if name in header), None)
    origin = next((header[name] for name in ("Offset", "Position", "Origin") if name in header), None)
    spacing = header.get("ElementSpacing")
    if ways is None or origin is None or spacing is None:
        raise DataError(
            f"{path}: its header does not say how it lies in the patient (TransformMatrix, Offset, ElementSpacing)"
        )
    if int(header["NDims"]) != 3 or _one(header, "ElementNumberOfChannels", 1) != 1:
        raise DataError(f"{path}: volumes of three axes with one value each are read")
    plain = {"ElementToIntensityFunctionSlope": 1.0, "ElementToIntensityFunctionOffset": 0.0, "HeaderSize": 0.0}
    if any(_one(header, name, value) != value for name, value in plain.items()) or not _yes(
        header, "BinaryData", "True"
    ):
        raise DataError(f"{path}: a MetaImage whose voxels are rescaled, text, or after a header of their own")
    # A row of the matrix is the direction of an axis.
    axes = _LPS @ (np.array(ways.split(), float).reshape(3, 3).T * np.array(spacing.split(), float))
    affine = _affine(axes, _LPS @ np.array(origin.split(), float))
    big = _yes(header, "BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False"))
    dtype = _dtype(path, _META_TYPES, header["ElementType"], big=big)
    sizes = [int(side) for side in header["DimSize"].split()]
    return _volume(path, start, sizes, dtype, affine, packed=_yes(header, "CompressedData", "False"))


def _head(path: Path, end: bytes) -> tuple[bytes, int]:
    """A header's text with what ends it, and where the voxels begin."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER)
    found = re.search(end, head)
    if found is None:
        raise DataError(f"{path}: no voxels follow its header within {MAX_HEADER // 1024} KB; save it as one file")
    return head[: found.end()], found.end()


def _dtype(path: Path, known: dict[str, str], name: str, *, big: bool) -> np.dtype[Any]:
    if name not in known:
        raise DataError(f"{path}: voxels of type {name[:40]!r} are not read; save them as int16 or float32")
    return np.dtype(known[name]).newbyteorder(">" if big else "<")


def _affine(axes: npt.NDArray[np.float64], origin: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = axes, origin
    return made


def _volume(
    path: Path, start: int, sizes: Any, dtype: np.dtype[Any], affine: npt.NDArray[np.float64], *, packed: bool
) -> Volume:
    """The volume whose voxels begin at a byte of its file; no more is inflated than its header says."""
    shape = check_geometry(path, sizes, dtype, affine)
    size = int(np.prod(shape)) * dtype.itemsize
    data: bytes | npt.NDArray[np.uint8]
    if packed:
        with path.open("rb") as file:
            file.seek(start)
            data = zlib.decompressobj(wbits=47).decompress(file.read(2 * size + MAX_HEADER), size)
    else:
        data = np.memmap(path, np.uint8, "r", start)[:size]
    if len(data) != size:
        raise DataError(f"{path}: damaged, it holds {len(data)} of {size} bytes of voxels")
    voxels = np.frombuffer(data, dtype).reshape(shape, order="F")
    native = voxels if dtype.isnative else voxels.astype(dtype.newbyteorder("="))
    return Volume(native, 1.0, 0.0, affine, None, "")


def _one(header: dict[str, str], name: str, default: float) -> float:
    return float(header.get(name, default))


def _yes(header: dict[str, str], name: str, default: str) -> bool:
    return header.get(name, default).lower() in ("true", "1", "t")
