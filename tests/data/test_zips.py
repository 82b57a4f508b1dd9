"""ZIP archives are unpacked with bounds, whatever the names in them say."""

import struct
import zipfile

import numpy as np
import pytest
from pydicom.uid import MediaStorageDirectoryStorage

from data.scanner import dicom, save, slices
from madclip.data.inputs import expand_inputs
from madclip.data.zips import is_zip, unpack
from madclip.errors import DataError


def pack(path, files, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_a_study_in_a_zip(tmp_path):
    paths = slices(tmp_path / "study", [6.0, 0.0, 3.0])
    made = pack(tmp_path / "study.zip", {f"../../ZZCANARY/{p.name}": p.read_bytes() for p in paths} | {"a/": b""})
    assert is_zip(made)
    (tmp_path / "out").mkdir()
    assert unpack(made, tmp_path / "out") == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.dcm", "000001.dcm", "000002.dcm"]
    assert not (tmp_path.parent / "ZZCANARY").exists()
    # An image that an archive hangs on is an image still.
    both = tmp_path / "image.dcm"
    both.write_bytes(paths[0].read_bytes() + made.read_bytes())
    assert zipfile.is_zipfile(both)
    assert not is_zip(both)
    assert not is_zip(tmp_path)
    (series,) = expand_inputs([tmp_path / "out"]).series
    assert [image.path.name for image in series.images] == ["000001.dcm", "000002.dcm", "000000.dcm"]


def test_what_a_folder_would_pass_over_is_not_unpacked(tmp_path):
    data = slices(tmp_path / "study", [0.0])[0].read_bytes()
    names = ("a.dcm", "__MACOSX/._a.dcm", "in/.hidden/b.dcm", "in/masks/a.dcm", "in\\Thumbs.db", "masks.dcm")
    (tmp_path / "out").mkdir()
    assert unpack(pack(tmp_path / "a.zip", dict.fromkeys(names, data)), tmp_path / "out") == 2


def test_suffixes_are_kept_where_they_are_harmless(tmp_path):
    made = pack(tmp_path / "a.zip", {"x.nii.gz": b"1", "y.P/NG": b"2", "z": b"3", "w." + "a" * 50: b"4", "v.é": b"5"})
    (tmp_path / "out").mkdir()
    unpack(made, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "000000.nii.gz",
        "000001",
        "000002.z",
        "000003",
        "000004",
    ]


def lie(path):
    """Lets the central directory state that the file is smaller than it is."""
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\1\2")
    data[start + 24 : start + 28] = struct.pack("<I", 10)
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["empty", "bomb", "encrypted", "many", "large", "lie", "cut"])
def test_what_is_not_unpacked(tmp_path, monkeypatch, how):
    noise = np.random.default_rng(0).bytes(5000)
    special = {"empty": {}, "bomb": {"a.dcm": bytes(2**24)}, "many": {f"{n}": b"" for n in range(5)}}
    made = pack(tmp_path / "a.zip", special.get(how, {"a": noise}))
    if how == "many":
        monkeypatch.setattr("madclip.data.zips.MAX_FILES", 4)
    elif how == "large":
        monkeypatch.setattr("madclip.data.zips.MAX_BYTES", 4000)
    elif how == "lie":
        lie(made)
    elif how == "cut":
        data = made.read_bytes()
        made.write_bytes(data[:40] + bytes(2000) + data[2040:])
    elif how == "encrypted":
        data = bytearray(made.read_bytes())
        data[data.rindex(b"PK\1\2") + 8] |= 1
        made.write_bytes(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="ZIP archive") as caught:
        unpack(made, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(made))


def test_a_dicomdir_stands_for_its_folder(tmp_path):
    slices(tmp_path / "medium/IMAGES", [0.0, 3.0])
    index = dicom(np.zeros((9, 9), np.uint16))
    for name in ("Rows", "Columns", "PixelData", "BitsAllocated"):
        delattr(index, name)
    index.SOPClassUID = index.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    save(index, tmp_path / "medium/DICOMDIR")
    assert len(expand_inputs([tmp_path / "medium/DICOMDIR"]).images) == 2
