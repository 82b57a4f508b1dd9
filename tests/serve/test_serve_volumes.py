"""Volumes through the API: what is painted on a slice comes back at the voxels that it was painted on."""

import base64
import gzip
import io
import json

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from scanner import slices

from madclip.client import ServerError
from madclip.serve import reading
from madclip.serve.api.service import Service
from madclip.serve.api.volumes import get_image, get_mask
from madclip.serve.intake import open_folder
from madclip.serve.project import Project

SHAPE = (20, 24, 18)
AFFINES = {
    "RAS": np.diag([1.0, 2.0, 3.0, 1.0]),
    "LPI": np.diag([-1.0, -2.0, -3.0, 1.0]),
    "turned": np.array([[0, 0, 2.0, -5], [-1.5, 0, 0, 7], [0, 3.0, 0, 1], [0, 0, 0, 1]]),
}


def nifti(path, affine, voxels):
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nibabel.save(image, path)
    return path


def loaded(content):
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(content))


def painted(client, image, where):
    mask = np.where(where, 255, 0).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(mask).save(out, "PNG")
    return client.put_mask(client.image(image["id"]), out.getvalue())


def pixels(client, image):
    content, headers = client.raw("GET", f"/v1/images/{image['id']}/pixels")
    return np.frombuffer(content, "<f4").reshape([int(side) for side in headers["x-shape"].split(",")])


@pytest.mark.parametrize("name", AFFINES)
def test_what_is_painted_comes_back_where_it_was_painted(served, tmp_path, name):
    voxels = np.random.default_rng(1).integers(0, 900, SHAPE).astype(np.int16)
    place = (4, 15, 6)
    voxels[place] = 1000
    client = served.client()
    images = client.upload(nifti(tmp_path / f"{name}.nii.gz", AFFINES[name], voxels))
    assert len({image["volume"] for image in images}) == 1
    assert [image["frame"] for image in images] == [image["place"] for image in images] == list(range(len(images)))
    by_name = client.images(sort="name")
    assert [one["frame"] for one in by_name if one["volume"] == images[0]["volume"]] == list(range(len(images)))
    assert {image["slices"] for image in images} == {len(images)}
    volume = images[0]["volume"]
    got = loaded(client.raw("GET", f"/v1/volumes/{volume}/image.nii.gz")[0])
    assert np.array_equal(np.asarray(got.dataobj), voxels)

    # The one bright pixel is on one slice; there it is painted.
    shown = {image["id"]: pixels(client, image) for image in images}
    bright = next(image for image in images if shown[image["id"]].max() == 1000)
    assert painted(client, bright, shown[bright["id"]] == 1000)["label"] == "abnormal"
    mask = loaded(client.raw("GET", f"/v1/volumes/{volume}/mask.nii.gz")[0])
    assert np.allclose(mask.affine, AFFINES[name])
    assert mask.get_data_dtype() == np.uint8
    assert np.argwhere(np.asarray(mask.dataobj)).tolist() == [list(place)]

    # A label map sets the masks of all slices, and comes back as it was.
    marks = np.random.default_rng(2).random(SHAPE) > 0.9
    marks[:, :, 0] = False
    path = nifti(tmp_path / "marks.nii.gz", AFFINES[name], marks.astype(np.uint8))
    url = f"/v1/volumes/{volume}/mask.nii.gz"
    changed = json.loads(client.raw("PUT", url, path.read_bytes(), {"content-type": "application/gzip"})[0])["images"]
    back = loaded(client.raw("GET", url)[0])
    assert np.array_equal(np.asarray(back.dataobj) > 0, marks)
    for image in changed:
        assert image["mask"] == (image["label"] == "abnormal")
    moved = AFFINES[name].copy()
    moved[0, 3] += 5
    elsewhere = nifti(tmp_path / "moved.nii.gz", moved, marks.astype(np.uint8))
    with pytest.raises(ServerError, match="does not lie on the volume's grid"):
        client.raw("PUT", url, elsewhere.read_bytes(), {"content-type": "application/gzip"})


def test_the_slices_of_a_series_find_each_other_whenever_they_come(served, tmp_path):
    grey = np.random.default_rng(3).integers(0, 900, (5, 16, 16)).astype(np.uint16)
    paths = slices(tmp_path / "series", [30.0, 10.0, 20.0, 0.0, 40.0], grey)
    client = served.client()
    first = client.upload(*paths[:3])
    client.upload(*paths[3:])
    images = [image for image in client.images() if image["volume"] == first[0]["volume"]]
    assert len(images) == 5
    assert images[0]["slices"] == 5
    assert [image["place"] for image in sorted(images, key=lambda one: one["name"])] == [3, 1, 2, 0, 4]
    volume = loaded(client.raw("GET", f"/v1/volumes/{images[0]['volume']}/image.nii.gz")[0])
    order = [3, 1, 2, 0, 4]  # by height
    assert np.array_equal(np.asarray(volume.dataobj), grey[order].transpose(2, 1, 0))


def test_unevenly_spaced_slices_are_one_volume_for_each_even_stretch(served, tmp_path):
    heights = [0.0, 5.0, 10.0, 15.0, 17.5, 20.0, 22.5, 40.0]
    grey = np.random.default_rng(5).integers(0, 900, (len(heights), 16, 12)).astype(np.uint16)
    client = served.client()
    number = client.upload(*slices(tmp_path / "uneven", heights, grey))[0]["volume"]
    known = client.get(f"/v1/volumes/{number}")
    assert known == {"id": number, "slices": 8, "stretches": [4, 3, 1]}
    url = f"/v1/volumes/{number}"
    with pytest.raises(ServerError, match=r"3 evenly spaced stretches: ask for \?stretch=1 to 3") as refused:
        client.raw("GET", f"{url}/image.nii.gz")
    assert refused.value.status == 409
    start = 0
    for stretch, count in enumerate(known["stretches"], 1):
        got = loaded(client.raw("GET", f"{url}/image.nii.gz?stretch={stretch}")[0])
        part = slice(start, start + count)
        assert np.array_equal(np.asarray(got.dataobj), grey[part].transpose(2, 1, 0))
        assert np.allclose([(got.affine @ [0, 0, k, 1])[2] for k in range(count)], heights[part])
        start += count
    marks = np.zeros((12, 16, 3), np.uint8)
    marks[5, 7, 1] = 1
    path = nifti(tmp_path / "marks.nii.gz", loaded(client.raw("GET", f"{url}/mask.nii.gz?stretch=2")[0]).affine, marks)
    changed = json.loads(client.raw("PUT", f"{url}/mask.nii.gz?stretch=2", path.read_bytes())[0])["images"]
    assert [image["mask"] for image in changed] == [False, True, False]
    assert np.argwhere(np.asarray(loaded(client.raw("GET", f"{url}/mask.nii.gz?stretch=2")[0]).dataobj)).tolist() == [
        [5, 7, 1]
    ]
    with pytest.raises(ServerError, match="has 3 stretches"):
        client.raw("GET", f"{url}/image.nii.gz?stretch=4")


class Here:
    """Does in this process what the reading processes do."""

    def call(self, do, *, body=b"", seconds=30.0, **arguments):
        return getattr(reading, do)(**arguments, **({"body": body} if body else {}))


def test_a_request_reads_the_header_of_each_slice_once(tmp_path, monkeypatch):
    slices(tmp_path / "uneven", [0.0, 5.0, 10.0, 12.5, 15.0])
    project = Project(tmp_path / "project")
    project.readers = Here()
    open_folder(project, tmp_path / "uneven")
    service, read, dcmread = Service(project, None, local=True), [], pydicom.dcmread

    def counted(path, **how):
        if how["stop_before_pixels"]:
            read.append(path.name)
        return dcmread(path, **how)

    monkeypatch.setattr(pydicom, "dcmread", counted)
    for get in (get_image, get_mask):
        read.clear()
        assert loaded(get(service, 1, 2).body).shape == (16, 12, 2)
        assert sorted(read) == sorted(path.name for path in (tmp_path / "uneven").iterdir())


def test_heat_maps_lie_on_the_scan(serve, tmp_path, quick):
    voxels = np.random.default_rng(4).normal(100, 10, (32, 40, 8)).astype(np.float32)
    voxels[8:20, 10:25, 4:] += 60
    path = nifti(tmp_path / "scan.nii.gz", AFFINES["LPI"], voxels)
    server = serve()
    client = server.client()
    images = client.upload(path)
    for image in images:
        client.label(image, "normal" if image["frame"] > 3 else "abnormal")
    client.wait(client.fit(**quick))
    volume = images[0]["volume"]
    heat = loaded(client.raw("GET", f"/v1/volumes/{volume}/heatmap.nii.gz")[0])
    assert heat.shape == voxels.shape
    assert np.allclose(heat.affine, AFFINES["LPI"])
    assert (float(heat.header["cal_min"]), float(heat.header["cal_max"])) == (0, 1)
    detector = client.detectors()[0]["id"]
    said = client.predict(detector, path, "nifti")
    assert len(said["rows"]) == 8
    sent = loaded(base64.b64decode(said["series"][0]["maps"][0]))
    assert np.allclose(np.asarray(sent.dataobj), np.asarray(heat.dataobj), atol=2e-3)
    assert said["series"][0]["score"] == max(row["score"] for row in said["rows"])
