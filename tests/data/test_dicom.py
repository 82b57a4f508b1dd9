"""Values of DICOM frames: against pydicom's and highdicom's own transforms, SimpleITK, and values by hand."""

import io
import zlib
from pathlib import Path

import highdicom
import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_rescale, apply_voi, apply_windowing
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from data.scanner import dicom, save, sequence, slices
from madclip.data import read_image, read_mask
from madclip.data.readers import frames_of
from madclip.data.readers.codestreams import codestream_size
from madclip.data.ref import ImageRef
from madclip.data.series import facts_of, sorted_series
from madclip.errors import DataError

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def grey(path, grey_range="file", frame=None):
    pixels = read_image(ImageRef(path, frame), grey_range).pixels
    np.testing.assert_array_equal(pixels[0], pixels[1])
    np.testing.assert_array_equal(pixels[0], pixels[2])
    return pixels[0]


def test_twelve_bits_keep_all_levels(tmp_path):
    path = save(dicom(RAMP, BitsStored=12), tmp_path / "a.dcm")
    found = grey(path)
    np.testing.assert_allclose(found, RAMP / 4095, atol=1e-7)
    assert len(np.unique(found)) == 4096
    assert read_image(path).depth == "12-bit"


def test_monochrome1_is_inverted_once(tmp_path):
    white = np.resize(np.array([0, 4095, 100], np.uint16), (9, 9))
    black = np.resize(np.array([4095, 0, 3995], np.uint16), (9, 9))
    one = save(dicom(white, BitsStored=12, PhotometricInterpretation="MONOCHROME1"), tmp_path / "1.dcm")
    two = save(dicom(black, BitsStored=12), tmp_path / "2.dcm")
    for rule in ("file", "full", "data"):
        np.testing.assert_allclose(grey(one, rule), grey(two, rule), atol=1e-7)
    # A range is written in stored values, whichever of them is white.
    np.testing.assert_allclose(grey(one, "0,100")[0, :3], [1, 0, 0], atol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "bits"), [("u1", 8), ("i1", 8), ("u2", 10), ("u2", 12), ("u2", 16), ("i2", 12), ("i2", 16)]
)
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (1, -1024), (2.5, -3), (-1, 40)])
def test_rescale_and_window_are_those_of_pydicom(tmp_path, dtype, bits, slope, intercept):
    signed = dtype[0] == "i"
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.random.default_rng(3).integers(low, low + 2**bits, (40, 40)).astype(dtype)
    values.flat[:2] = low, low + 2**bits - 1
    centre, width = intercept + slope * (low + 2**bits / 3), abs(slope) * 2**bits / 4
    made = dicom(values, BitsStored=bits, RescaleSlope=slope, RescaleIntercept=intercept)
    made.WindowCenter, made.WindowWidth = round(centre), max(2, round(width))
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        made.VOILUTFunction = function
        path = save(made, tmp_path / "a.dcm")
        rescaled = apply_rescale(values, made)
        shown = apply_windowing(rescaled, made)
        ends = sorted((slope * low + intercept, slope * (low + 2**bits - 1) + intercept))
        if slope < 0:
            continue  # pydicom's window assumes a rising slope
        np.testing.assert_allclose(grey(path), (shown - ends[0]) / (ends[1] - ends[0]), atol=2e-6)
    np.testing.assert_allclose(grey(path, "full"), (rescaled - ends[0]) / (ends[1] - ends[0]), atol=1e-6)
    np.testing.assert_allclose(grey(path, "data"), (rescaled - rescaled.min()) / np.ptp(rescaled), atol=1e-6)


def test_named_windows_are_those_of_ct(tmp_path):
    hounsfield = np.linspace(-1000, 1000, 81).round().reshape(9, 9).astype(np.int16)
    path = save(dicom(hounsfield), tmp_path / "a.dcm")
    expected = np.clip((hounsfield - (40 - 0.5)) / (80 - 1) + 0.5, 0, 1)
    np.testing.assert_allclose(grey(path, "window:brain"), expected, atol=1e-6)
    np.testing.assert_allclose(grey(path, "window:40,80"), expected, atol=1e-6)


def test_voi_tables_win_over_windows(tmp_path):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    table = (np.sqrt(np.arange(256) / 255) * 1023).round().astype(np.uint16)
    made = dicom(values, BitsStored=8, WindowCenter=10, WindowWidth=5)
    made.VOILUTSequence = sequence(LUTDescriptor=[256, 0, 10], LUTData=[int(value) for value in table])
    made.VOILUTSequence[0]["LUTDescriptor"].VR = "US"
    made.VOILUTSequence[0]["LUTData"].VR = "US"
    path = save(made, tmp_path / "a.dcm")
    np.testing.assert_allclose(grey(path), apply_voi(values, pydicom.dcmread(path)) / 1023, atol=1e-6)
    np.testing.assert_allclose(grey(path, "full"), values / 255, atol=1e-6)
    np.testing.assert_allclose(grey(path, "0,100"), np.clip(values / 100, 0, 1), atol=1e-6)


def test_voi_tables_are_for_what_is_rescaled(tmp_path):
    values = np.arange(192, dtype=np.uint16).reshape(12, 16)
    table = np.linspace(0, 255, 192) ** 2 // 255
    made = dicom(values, RescaleSlope=1, RescaleIntercept=-1024)
    made.VOILUTSequence = sequence(LUTDescriptor=[192, -1024, 8], LUTData=[int(value) for value in table])
    made.VOILUTSequence[0]["LUTDescriptor"].VR = "SS"
    made.VOILUTSequence[0]["LUTData"].VR = "US"
    np.testing.assert_allclose(grey(save(made, tmp_path / "a.dcm")), table.astype(int).reshape(12, 16) / 255, atol=1e-6)


def test_padding_is_black_whatever_the_range(tmp_path):
    values = np.full((12, 16), 1000, np.uint16)
    values[:, :4] = 63
    values[:, 8:] = 1200
    made = dicom(values, PixelPaddingValue=63, RescaleIntercept=-1000, WindowCenter=100, WindowWidth=2000)
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        made.PhotometricInterpretation = photometric
        found = grey(save(made, tmp_path / f"{photometric}.dcm"))
        assert (found[:, :4] == 0).all()
        assert (found[:, 4:] > 0).all()


def test_modality_tables_win_over_slopes(tmp_path):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    made = dicom(values, BitsStored=8, RescaleSlope=9, RescaleIntercept=9)
    made.ModalityLUTSequence = sequence(LUTDescriptor=[256, 0, 16], LUTData=[256 * n for n in range(256)])
    for name in ("LUTDescriptor", "LUTData"):
        made.ModalityLUTSequence[0][name].VR = "US"
    path = save(made, tmp_path / "a.dcm")
    np.testing.assert_allclose(grey(path), values * 256 / 65535, atol=1e-6)


def test_padding_is_no_part_of_the_range(tmp_path):
    values = np.full((10, 10), -2000, np.int16)
    values[2:8, 2:8] = np.arange(36).reshape(6, 6) + 100
    for photometric, padded in (("MONOCHROME2", 0), ("MONOCHROME1", 0)):
        made = dicom(values, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
        made["PixelPaddingValue"].VR = "SS"
        found = grey(save(made, tmp_path / "a.dcm"), "data")
        inside = (values[2:8, 2:8] - 100) / 35
        np.testing.assert_allclose(found[2:8, 2:8], inside if photometric == "MONOCHROME2" else 1 - inside, atol=1e-6)
        assert (found[0] == padded).all()
    made.PixelPaddingRangeLimit = -1000
    made["PixelPaddingRangeLimit"].VR = "SS"
    values[0, 0] = -1500
    made.PixelData = values.tobytes()
    assert grey(save(made, tmp_path / "a.dcm"), "data")[0, 0] == 0


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed_syntaxes(tmp_path, syntax):
    made = dicom(RAMP, BitsStored=12)
    made.file_meta.TransferSyntaxUID = syntax
    path = tmp_path / "a.dcm"
    if syntax == ExplicitVRBigEndian:
        made.PixelData = RAMP.astype(">u2").tobytes()
        pydicom.dcmwrite(path, made, implicit_vr=False, little_endian=False, force_encoding=True)
        np.testing.assert_allclose(grey(path), RAMP / 4095, atol=1e-7)
        return
    np.testing.assert_allclose(grey(save(made, tmp_path / "a.dcm")), RAMP / 4095, atol=1e-7)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("kind", ["grey", "signed", "colour"])
def test_compressed_syntaxes(tmp_path, syntax, kind):
    values = {"grey": RAMP, "signed": RAMP.astype(np.int16) - 2048}.get(kind)
    if values is None:
        values = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    made = dicom(values, **({} if kind == "colour" else {"BitsStored": 12}))
    if kind == "colour" and syntax == JPEG2000Lossless:
        made.PhotometricInterpretation = "YBR_RCT"
        made.compress(syntax, generate_instance_uid=False, encoding_plugin="pylibjpeg")
    else:
        made.compress(syntax, generate_instance_uid=False)
    found = read_image(save(made, tmp_path / "a.dcm"), "full").pixels
    low, span = {"grey": (0, 4095), "signed": (-2048, 4095), "colour": (0, 255)}[kind]
    expected = (values.astype(float) - low) / span
    np.testing.assert_allclose(
        found, np.moveaxis(np.dstack([expected] * (1 if kind == "colour" else 3)), -1, 0), atol=1e-6
    )


@pytest.mark.parametrize(
    "name",
    [
        "693_J2KI.dcm",
        "CT_small.dcm",
        "ExplVR_BigEnd.dcm",
        "JPEGLSNearLossless_16.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "MR_small_RLE.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "examples_jpeg2k.dcm",
        "examples_overlay.dcm",
        "image_dfl.dcm",
    ],
)
def test_real_files_as_pydicom_decodes_them(name):
    path = get_testdata_file(name)
    dataset = pydicom.dcmread(path)
    values = dataset.pixel_array
    if values.ndim == 2:
        values = apply_rescale(values, dataset)
        for grey_range in ("-100,300", "0,65535"):
            low, high = map(float, grey_range.split(","))
            expected = np.clip((values.astype(float) - low) / (high - low), 0, 1)
            np.testing.assert_allclose(read_image(path, grey_range).pixels[0], expected, atol=1e-6)
    else:
        white = 2.0**dataset.BitsStored - 1
        np.testing.assert_allclose(read_image(path, "full").pixels, np.moveaxis(values / white, -1, 0), atol=1e-6)


def test_palettes_are_colours_of_an_image_and_labels_of_a_mask(tmp_path):
    path = get_testdata_file("examples_palette.dcm")
    dataset = pydicom.dcmread(path)
    expected = apply_color_lut(dataset.pixel_array, dataset) / 65535
    np.testing.assert_allclose(read_image(path, "full").pixels, np.moveaxis(expected, -1, 0), atol=1e-6)
    np.testing.assert_array_equal(read_mask(path), dataset.pixel_array != 0)


@pytest.mark.parametrize("mode", ["grey", "deep", "colour"])
def test_lossless_jpeg_needs_no_further_decoder(tmp_path, mode):
    planes = {"grey": [RAMP // 16] * 3, "deep": [RAMP * 15] * 3, "colour": [RAMP // 16, RAMP // 32, 255 - RAMP // 16]}
    bits = 16 if mode == "deep" else 8
    expected = np.stack(planes[mode]).astype(f"uint{bits}")
    values = np.moveaxis(expected, 0, -1) if mode == "colour" else expected[0]
    made = dicom(np.ascontiguousarray(values))
    kept = {"colorspace": "RGB", "outcolorspace": "RGB"} if mode == "colour" else {}
    frame = imagecodecs.jpeg8_encode(np.ascontiguousarray(values), lossless=True, bitspersample=bits, **kept)
    made.PixelData = encapsulate([frame])
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    found = read_image(save(made, tmp_path / "a.dcm"), "full").pixels
    np.testing.assert_allclose(found, expected / (2**bits - 1), atol=1e-6)


def test_12_bit_jpeg_needs_no_further_decoder():
    path = get_testdata_file("JPGExtended.dcm")
    found = read_image(path, "full").pixels[0] * 4095
    # As the file's own description has it: a bone scan of 1,024 x 256 counts, the brightest of them 264.
    assert found.shape == (1024, 256)
    assert found.max() == pytest.approx(264, abs=1)
    assert found.min() == 0


def test_frames_have_their_own_slope_and_window(tmp_path):
    frames = np.full((4, 12, 12), 100, np.uint16)
    made = dicom(frames, NumberOfFrames=4)
    made.SharedFunctionalGroupsSequence = sequence(PixelMeasuresSequence=sequence(PixelSpacing=[0.5, 0.25]))
    groups = []
    for slope in (1, 2, 4, 8):
        group = pydicom.Dataset()
        group.PixelValueTransformationSequence = sequence(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US")
        group.FrameVOILUTSequence = sequence(WindowCenter=500, WindowWidth=1001)
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = pydicom.Sequence(groups)
    path = save(made, tmp_path / "a.dcm")
    assert frames_of(path) == tuple(ImageRef(path, number) for number in range(4))
    for number, value in enumerate((100, 200, 400, 800)):
        expected = (value - 499.5) / 1000 + 0.5
        np.testing.assert_allclose(grey(path, frame=number), expected, atol=1e-6)
    assert read_image(ImageRef(path, 0)).spacing == (0.5, 0.25)
    with pytest.raises(DataError, match="holds 4 frames"):
        read_image(path)
    with pytest.raises(DataError, match="no such frame"):
        read_image(ImageRef(path, 4))


def test_highdicom_reads_the_same_frames(tmp_path):
    highdicom = pytest.importorskip("highdicom")
    path = get_testdata_file("examples_ybr_color.dcm")
    theirs = highdicom.imread(path)
    for number in (0, 17, 29):
        frame = theirs.get_frame(number + 1, apply_icc_profile=False)
        np.testing.assert_allclose(
            read_image(ImageRef(Path(path), number)).pixels, np.moveaxis(frame / 255, -1, 0), atol=1e-6
        )


@pytest.mark.parametrize(
    ("ways", "sides"),
    [
        ([1, 0, 0, 0, 1, 0], "RLAP"),  # axial
        ([1, 0, 0, 0, 0, -1], "RLHF"),  # coronal
        ([0, 1, 0, 0, 0, -1], "APHF"),  # sagittal
        ([-1, 0, 0, 0, -0.8, 0.6], "LRPA"),  # turned upside down, and oblique
    ],
)
def test_sides_are_those_that_highdicom_names(tmp_path, ways, sides):
    made = dicom(np.eye(12, 16, dtype=np.uint16), ImageOrientationPatient=ways)
    assert read_image(save(made, tmp_path / "a.dcm")).sides == sides
    directions = np.column_stack([np.cross(ways[:3], ways[3:]), ways[3:], ways[:3]])
    _, bottom, right = highdicom.spatial.get_closest_patient_orientation(directions)
    assert sides[3] + sides[1] == bottom.value + right.value


def test_a_projection_says_its_sides_itself(tmp_path):
    made = dicom(np.eye(12, 16, dtype=np.uint16), PatientOrientation=["L", "FP"])
    assert read_image(save(made, tmp_path / "a.dcm")).sides == "RLHF"
    assert read_image(save(dicom(np.eye(12, dtype=np.uint16)), tmp_path / "b.dcm")).sides == ""


def test_spacing_of_the_patient_goes_before_the_detectors(tmp_path):
    made = dicom(RAMP, ImagerPixelSpacing=[0.2, 0.3])
    detector = read_image(save(made, tmp_path / "a.dcm"))
    assert (detector.spacing, detector.at_detector) == ((0.2, 0.3), True)
    made.PixelSpacing = [0.5, 0.6]
    patient = read_image(save(made, tmp_path / "b.dcm"))
    assert (patient.spacing, patient.at_detector) == ((0.5, 0.6), False)
    # Both the same: the detector's, unless the header says that it was corrected (PS3.3, 10.7.1.3).
    made.PixelSpacing = [0.2, 0.3]
    assert read_image(save(made, tmp_path / "c.dcm")).at_detector
    made.PixelSpacingCalibrationType = "GEOMETRY"
    assert not read_image(save(made, tmp_path / "d.dcm")).at_detector
    assert not read_image(save(dicom(RAMP, PixelSpacing=[0.2, 0.3]), tmp_path / "e.dcm")).at_detector


def test_overlay_bits_are_masked_and_lying_ones_refused(tmp_path):
    values = RAMP | 0x8000
    with pytest.raises(DataError, match="beyond the 12 bits"):
        read_image(save(dicom(values, BitsStored=12), tmp_path / "a.dcm"))
    made = dicom(values, BitsStored=12)
    made.add_new((0x6000, 0x0102), "US", 15)
    np.testing.assert_allclose(grey(save(made, tmp_path / "b.dcm")), RAMP / 4095, atol=1e-7)


def test_text_in_the_pixels_is_said(tmp_path):
    said = read_image(save(dicom(RAMP, BurnedInAnnotation="YES"), tmp_path / "a.dcm")).note
    assert "burned into" in said
    assert "screen" in read_image(save(dicom(RAMP, ConversionType="WSD"), tmp_path / "b.dcm")).note


CANARY = "ZZCANARY"


def cut(data):
    return data[:-3000]


def unknown_syntax(data):
    return data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")


def wide_codestream(data):
    start = data.index(b"\xff\x4f\xff\x51") + 10
    return data[:start] + b"\x00\xff" + data[start + 2 :]


BROKEN = {
    "rows": {"Rows": 64000},
    "absurd": {"Rows": 65000, "Columns": 65000},
    "frames": {"NumberOfFrames": 2**31 - 1},
    "bits": {"BitsStored": 40},
    "slope": {"RescaleSlope": 0, "RescaleIntercept": 0},
    "window": {"WindowCenter": 40, "WindowWidth": 0},
    "photometric": {"PhotometricInterpretation": "HSV"},
    "no pixels": ("PixelData",),
    "no image": ("PixelData", "Rows", "Columns"),
    "cut": cut,
    "header only": lambda data: data[:300],
    "syntax": unknown_syntax,
    "codestream": wide_codestream,
}


@pytest.mark.parametrize("how", BROKEN)
def test_bad_files_give_one_line_without_the_patient(tmp_path, how):
    change = BROKEN[how]
    patient = {"PatientName": f"{CANARY}^A", "PatientID": CANARY, "InstitutionName": CANARY}
    made = dicom(RAMP, **patient | {"BitsStored": 12} | (change if isinstance(change, dict) else {}))
    if how == "codestream":
        made.compress(JPEG2000Lossless, generate_instance_uid=False)
    for name in change if isinstance(change, tuple) else ():
        delattr(made, name)
    path = save(made, tmp_path / "scan.dcm")
    if callable(change):
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        read_image(path)
    said = str(caught.value)
    assert said.startswith(f"{path}")
    assert CANARY not in said
    assert "\n" not in said


def test_a_deflated_file_that_inflates_beyond_bounds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("madclip.data.readers.dicom._MAX_INFLATED", 2**16)
    made = dicom(np.zeros((512, 512), np.uint16))
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = save(made, tmp_path / "a.dcm")
    assert path.stat().st_size < 2**14
    with pytest.raises(DataError, match="deflated DICOM file of more"):
        read_image(path)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    buffer = io.BytesIO()
    made = dicom(RAMP[:16, :16], BitsStored=12, WindowCenter=100, WindowWidth=50, RescaleSlope=1, RescaleIntercept=-5)
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue(), tmp_path_factory.mktemp("mutated") / "a.dcm"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(132, 1200), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutations_are_read_or_refused(valid, changes):
    data, path = bytearray(valid[0]), valid[1]
    for place, value in changes:
        data[place] = value
    path.write_bytes(data)
    try:
        found = read_image(path)
    except DataError as error:
        said = str(error)
        assert said.startswith(str(path)), said
    else:
        assert np.isfinite(found.pixels).all()


def test_codestreams_say_their_size():
    values = np.zeros((20, 33), np.uint8)
    for encode in (imagecodecs.jpeg8_encode, imagecodecs.jpegls_encode, imagecodecs.ljpeg_encode):
        assert codestream_size(encode(values)) == (33, 20)
    assert codestream_size(imagecodecs.jpeg2k_encode(values, codecformat="j2k")) == (33, 20)
    assert codestream_size(zlib.compress(b"x")) is None
    assert codestream_size(b"\xff\xd8\xff") is None


# Series


def in_order(folder):
    return sorted_series(facts_of(path) for path in sorted(folder.glob("*.dcm")))


def test_slices_are_sorted_by_place_whatever_they_are_called(tmp_path):
    heights = [30.0, 10.0, 20.0, 0.0]
    slices(tmp_path, heights, names=["a.dcm", "d.dcm", "b.dcm", "c.dcm"])
    (found,) = in_order(tmp_path)
    assert [image.path.name for image in found.images] == ["c.dcm", "d.dcm", "b.dcm", "a.dcm"]
    assert [place.height for place in found.places] == [0, 10, 20, 30]
    assert found.notes == ()


@pytest.mark.parametrize(
    ("heights", "tilt", "said"),
    [
        ([0, 5, 10, 15], 0.0, []),
        ([0, 5, 10, 20], 0.0, ["1 slices are missing"]),
        ([0, 1, 5, 12], 0.0, ["unevenly spaced, from 1.00 to 7.00 mm"]),
        ([0, 5, 5, 10], 0.0, ["1 of 4 slices lie at the place"]),
        ([0, 5, 10, 15], 0.3333, ["18.4 degrees"]),
    ],
)
def test_what_is_odd_about_a_stack_is_said(tmp_path, heights, tilt, said):
    slices(tmp_path, heights, tilt=tilt)
    (found,) = in_order(tmp_path)
    assert len(found.notes) == len(said)
    for note, part in zip(found.notes, said, strict=True):
        assert part in note


def test_localisers_and_other_directions_are_told_apart(tmp_path):
    slices(tmp_path, [0, 5, 10])
    save(
        dicom(np.zeros((12, 16), np.uint16), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], InstanceNumber=9),
        tmp_path / "scout.dcm",
    )
    coronal = dicom(
        np.zeros((12, 16), np.uint16),
        ImagePositionPatient=[0, 0, 0],
        ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
        PixelSpacing=[1, 1],
    )
    save(coronal, tmp_path / "z.dcm")
    found = in_order(tmp_path)
    assert sorted(len(one.images) for one in found) == [1, 1, 3]
    assert all("One of 3 groups" in one.notes[0] for one in found)


def test_without_positions_numbers_order_and_it_is_said(tmp_path):
    for number, name in ((3, "a"), (1, "b"), (2, "c")):
        save(dicom(np.zeros((12, 16), np.uint16), InstanceNumber=number), tmp_path / f"{name}.dcm")
    (found,) = in_order(tmp_path)
    assert [image.path.stem for image in found.images] == ["b", "c", "a"]
    assert found.places is None
    assert "no position" in found.notes[0]
