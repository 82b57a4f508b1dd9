"""Where slices and heat maps lie: against dcm2niix, and by coordinates."""

import os
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest

from clinical.conftest import tool
from data.scanner import slices
from madclip.clinical.geometry import affine_of, even_places, even_runs, interpolated
from madclip.clinical.nifti import has_shear, write_heatmap
from madclip.data.series import Place, facts_of, sorted_series


def series_in(folder):
    (found,) = sorted_series(facts_of(path) for path in sorted(folder.glob("*.dcm")))
    return found


def by_dcm2niix(folder, out):
    """The volumes that dcm2niix makes of a series, without those that it resamples."""
    out.mkdir()
    command = [tool("dcm2niix"), "-z", "n", "-b", "n", "-o", out, folder]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    paths = [path for path in out.glob("*.nii") if "_Tilt" not in path.name and "_Eq" not in path.name]
    return [nibabel.load(path) for path in paths]


def corners(affine, shape):
    """Where the first voxels of the eight corners lie."""
    ends = np.stack(np.meshgrid(*[(0, side - 1) for side in shape], indexing="ij"), -1).reshape(-1, 3)
    return nibabel.affines.apply_affine(affine, ends)


def same_places(one, other):
    """Whether two sets of points are the same, in any order."""
    distances = np.linalg.norm(one[:, None] - other[None], axis=-1)
    return distances.min(axis=1).max() < 1e-2 and distances.min(axis=0).max() < 1e-2


@pytest.mark.parametrize("spacing", [2.0, 3.5])
def test_an_even_series_lies_where_dcm2niix_puts_it(tmp_path, spacing):
    slices(tmp_path / "in", [spacing * number for number in range(6)])
    found = series_in(tmp_path / "in")
    assert even_runs(found.places) == [range(6)]
    (theirs,) = by_dcm2niix(tmp_path / "in", tmp_path / "out")
    assert same_places(corners(affine_of(found.places), (16, 12, 6)), corners(theirs.affine, theirs.shape))


def test_runs_hold_every_slice_once(tmp_path):
    slices(tmp_path, [0.0, 2.0, 4.0, 9.0, 14.0, 15.0, 15.0, 30.0])
    found = series_in(tmp_path)
    runs = even_runs(found.places)
    assert [number for run in runs for number in run] == list(range(8))
    assert runs[0] == range(3)
    for run in runs:
        part = found.places[run.start : run.stop]
        affine = affine_of(part)
        for number, place in enumerate(part):
            there = (affine @ [0, 0, number, 1])[:3]
            np.testing.assert_allclose(there, np.array(place.corner) * [-1, -1, 1], atol=0.03)


def test_small_steps_that_add_up_are_not_even():
    heights = np.cumsum([0.0, 1.0, *[0.96] * 50, *[1.04] * 50])  # each within 5 %, and 2 mm off in the middle
    places = [Place((0.0, 0.0, height), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0)) for height in heights]
    runs = even_runs(places)
    assert [number for run in runs for number in run] == list(range(102))
    for run in runs:
        affine = affine_of(places[run.start : run.stop])
        for number, place in enumerate(places[run.start : run.stop]):
            assert abs((affine @ [0, 0, number, 1])[2] - place.height) < 0.06


def test_a_leaning_stack_keeps_its_shear(tmp_path):
    slices(tmp_path / "in", [4.0 * number for number in range(5)], tilt=0.3)
    found = series_in(tmp_path / "in")
    affine = affine_of(found.places)
    assert has_shear(affine)
    maps = np.random.default_rng(0).random((16, 12, 5)).astype(np.float32)
    write_heatmap(tmp_path / "a.nii.gz", maps, affine)
    write_heatmap(tmp_path / "b.nii.gz", maps, affine)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    read = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(read.dataobj), maps)
    assert (read.header["sform_code"], read.header["qform_code"]) == (1, 0)
    assert read.header.get_xyzt_units()[0] == "mm"
    assert (read.dataobj.slope, read.dataobj.inter) == (1, 0)


@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_uneven_slices_are_interpolated_onto_even_ones(tmp_path, tilt):
    heights = [0.0, 2.0, 4.0, 4.0, 9.0, 16.0, 17.0]
    slices(tmp_path, heights, tilt=tilt)
    places = series_in(tmp_path).places
    even = even_places(places)
    np.testing.assert_allclose([place.height for place in even], np.arange(18), atol=1e-6)
    affine = affine_of(even)
    for place in places:  # every slice lies where the even volume has it
        column, row, index = np.linalg.solve(affine[:3, :3], np.array(place.corner) * [-1, -1, 1] - affine[:3, 3])
        np.testing.assert_allclose((column, row, index), (0, 0, place.height), atol=1e-6)
    maps = np.random.default_rng(0).random((7, 12, 16)).astype(np.float32)
    found = interpolated(maps, places, even)
    known = np.delete(maps, 3, axis=0)
    known[2] = np.maximum(maps[2], maps[3])
    at = np.delete(heights, 3)
    expected = np.apply_along_axis(lambda line: np.interp(np.arange(18), at, line), 0, known)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_lies_on_no_line_is_not_interpolated():
    bent = [
        Place((x, 0.0, z), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0))
        for x, z in ((0.0, 0.0), (5.0, 3.0), (0.0, 9.0))
    ]
    assert even_places(bent) is None


REAL = os.environ.get("MADCLIP_REAL_DATA")


@pytest.mark.skipif(not REAL, reason="MADCLIP_REAL_DATA names no folder with real files")
def test_the_ends_of_a_tilted_ct_lie_where_dcm2niix_puts_them(tmp_path):
    folder = Path(REAL) / "clinical/CT_GE_tilt"
    found = series_in(folder)
    theirs = [one for one in by_dcm2niix(folder, tmp_path / "out") if len(one.shape) == 3]
    runs = even_runs(found.places)
    assert sum(map(len, runs)) == 28
    # Within the first evenly spaced stretch the first slice is theirs, at the end where they begin to count.
    first = affine_of(found.places[runs[0].start : runs[0].stop])
    ours = nibabel.affines.apply_affine(first, [[0, 0, 0], [511, 0, 0], [0, 511, 0], [511, 511, 0]])
    best = min(
        np.linalg.norm(ours[:, None] - corners(one.affine, (*one.shape[:2], 1))[None], axis=-1).min(1).max()
        for one in theirs
    )
    assert best < 1e-2
