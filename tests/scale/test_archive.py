"""An archive on this machine: each image exactly once, whatever is stopped or broken, and the rows of `predict`."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from archives import Stub
from PIL import Image

from madclip import MadCLIP
from madclip.data.ref import ImageRef
from madclip.errors import DataError, MissingExtraError
from madclip.prediction import Row
from madclip.scale.archive import CHUNK, predict_archive
from madclip.scale.executor import LocalProcesses
from madclip.scale.listing import Entry, found, listing
from madclip.scale.parquet import COLUMNS, Counts, write_part
from madclip.scale.scoring import SavedDetector, detector_digest

HERE = Path(__file__).parent


def write_listing(path, count, *, image="slide.tif"):
    """Parquet: `count` frames of one file that is not there, which the stub does not mind."""
    writer = None
    for start in range(0, count, 50_000):
        frames = range(start, min(start + 50_000, count))
        table = pa.table({"image": pa.array([image] * len(frames)), "frame": pa.array(frames, pa.int64())})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()
    return path


def rows(out):
    return pq.read_table(out / "rows").to_pylist()


def bytes_of(out):
    return {path.name: path.read_bytes() for path in sorted((out / "rows").iterdir())}


def run(source, out, scoring=None, *, name="source", executor=None, **options):
    return predict_archive(source, name, out, scoring or Stub(), executor=executor or LocalProcesses(), **options)


def entries(names):
    return lambda: [Entry(number, *(name if isinstance(name, tuple) else (name,))) for number, name in enumerate(names)]


def picture(path, seed):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 90), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def scoring(small_detector):
    return SavedDetector(small_detector, detector_digest(small_detector), "axial", device="cpu")


# The rows


def test_rows_are_those_of_predict(tmp_path, scoring, small_backbone, small_detector):
    """The typed Row of each image, bit for bit what `predict_iter` says in one process, and nothing is rounded."""
    images = [picture(tmp_path / "in" / f"{number}.png", number) for number in range(11)]
    images[3].write_bytes(b"no image")
    (tmp_path / "in" / "4.png").unlink()
    detector = MadCLIP.load(small_detector, backbone=small_backbone)
    expected = [Row.of(image, found) for image, found in zip(images, detector.predict_iter(images), strict=True)]
    counts = run(found([ImageRef(image) for image in images]), tmp_path / "out", scoring, maps="npy")
    assert counts == (11, 11, 2)
    table = rows(tmp_path / "out")
    assert [Row(**{name: row[name] for name in Row.__dataclass_fields__}) for row in table] == expected
    assert {(row["detector"], row["detector_sha256"]) for row in table} == {("small", scoring.sha256)}
    kept = [np.load(tmp_path / "out" / row["map"]) for row in table if row["map"]]
    maps = [said.anomaly_map for said in detector.predict_iter(images) if not isinstance(said, DataError)]
    assert all(np.array_equal(one, other) for one, other in zip(kept, maps, strict=True))


def test_the_schema_is_the_one_that_is_documented(tmp_path):
    run(entries(["a"]), tmp_path / "out")
    schema = pq.read_schema(tmp_path / "out" / "rows" / "part-000000.parquet")
    assert schema.metadata[b"madclip.schema"] == b"1"
    page = (HERE.parents[1] / "docs" / "scale.md").read_text("utf-8")
    written = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    documented = {name.strip(" `"): kind.strip() for name, kind in written if name.strip(" `") in COLUMNS}
    assert documented == {field.name: str(field.type) for field in schema}
    assert set(Row.__dataclass_fields__) <= set(schema.names)


def test_a_file_of_several_images_has_a_row_for_each(tmp_path, scoring):
    pages = np.random.default_rng(0).integers(0, 255, (3, 40, 40), np.uint8)
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="minisblack")
    table = tmp_path / "listing.csv"
    table.write_text(f"Image;frame;patient\npages.tif;;a\n{tmp_path}/pages.tif;2;b\n")
    assert run(listing(str(table)), tmp_path / "out", scoring) == (2, 4, 0)
    said = [(row["number"], row["frame"], row["score"]) for row in rows(tmp_path / "out")]
    assert [row[:2] for row in said] == [(0, 0), (0, 1), (0, 2), (1, 2)]
    assert said[2][2] == pytest.approx(said[3][2], abs=1e-6)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_urls_are_fetched(tmp_path, scoring, kind, monkeypatch):
    """From fsspec's own memory and file systems; what is fetched does not stay, and errors name the URL."""
    import fsspec

    images = [picture(tmp_path / "in" / f"{number}.png", number) for number in range(3)]
    store = fsspec.filesystem("memory")
    names = []
    for number, image in enumerate(images):
        store.pipe(f"/archive/{kind}/deep/{number}.png", image.read_bytes())
        names.append(f"deep/{number}.png")
    names += ["deep/lost.png", images[0].as_uri()]
    with store.open(f"/archive/{kind}/listing.{kind}", "wb") as file:
        if kind == "parquet":
            pq.write_table(pa.table({"path": names}), file)
        else:
            lines = [json.dumps({"image": name}) for name in names] if kind == "jsonl" else ["\ufeffimage", *names]
            file.write("\n".join(lines).encode())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    there = set(tmp_path.iterdir())
    counts = run(listing(f"memory://archive/{kind}/listing.{kind}"), tmp_path / "url", scoring)
    assert counts == (5, 5, 1)
    assert set(tmp_path.iterdir()) == {*there, tmp_path / "url"}
    fetched = rows(tmp_path / "url")
    run(found([ImageRef(image) for image in images]), tmp_path / "local", scoring)
    local = rows(tmp_path / "local")
    assert [row["image"] for row in fetched[:3]] == [
        f"memory://archive/{kind}/deep/{number}.png" for number in range(3)
    ]
    assert [row["score"] for row in fetched[:3]] == pytest.approx([row["score"] for row in local], abs=1e-6)
    assert fetched[4]["score"] == pytest.approx(local[0]["score"], abs=1e-6)
    assert fetched[3]["error"].startswith(f"memory://archive/{kind}/deep/lost.png: cannot be fetched")


# Stopped, killed, run again


@pytest.fixture
def start():
    """Start a run of the stub in a process of its own; it is killed when the test ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    running = []

    def begin(table, out, *options):
        command = [sys.executable, HERE / "archives.py", table, out, *options]
        process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def wait_for_parts(out, count, process, seconds=120):
    for _ in range(seconds * 50):
        if len(list(out.glob("rows/part-*"))) >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    pytest.fail("it takes too long")


def test_killed_stopped_and_run_again(tmp_path, start):
    """kill -9 and Ctrl-C while it writes, nobody beside it: the bytes are those of a run that nobody touched."""
    table, out = write_listing(tmp_path / "listing.parquet", 12 * CHUNK + 7), tmp_path / "out"
    run(listing(str(table)), tmp_path / "whole", name=str(table))
    slow = ("local", "", "1", "0.001")
    process = start(table, out, *slow)
    wait_for_parts(out, 1, process)
    refused(listing(str(table)), out, "another process", name=str(table))
    time.sleep(random.Random(1).random())
    process.kill()
    process.wait()
    killed = bytes_of(out)
    (out / "rows" / ".part-000099.parquet.0123.partial").touch()  # as a process leaves it that is killed as it writes
    process = start(table, out, *slow)
    wait_for_parts(out, len(killed) + 1, process)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    stopped = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    assert 1 <= len(killed) < len(stopped) <= 12
    run(listing(str(table)), out, name=str(table))
    assert {path: path.stat().st_mtime_ns for path in stopped} == stopped, "nothing is done twice"
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


@pytest.mark.soak
def test_a_million_rows_in_constant_memory(tmp_path, soak, start):
    """Listing, writing, and going on after a kill, all in less than 500 MB; a run that has all of it adds little."""
    count = soak(1_000_000)
    table = write_listing(tmp_path / "listing.parquet", count)
    process = start(table, tmp_path / "out")
    wait_for_parts(tmp_path / "out", count / CHUNK / 2, process, 1200)
    process.kill()
    process.wait()
    command = [sys.executable, HERE / "archives.py", table, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["counts"] == [count, count, 0]
    assert said["memory"] < 500
    numbers = pq.read_table(tmp_path / "out" / "rows", columns=["number", "frame"])
    assert np.array_equal(np.sort(numbers["number"].to_numpy()), np.arange(count))
    assert np.array_equal(numbers["number"].to_numpy(), numbers["frame"].to_numpy())


def test_workers_do_not_change_the_rows(tmp_path):
    table = write_listing(tmp_path / "listing.parquet", 3 * CHUNK + 1)
    for workers in (1, 2):
        run(listing(str(table)), tmp_path / str(workers), executor=LocalProcesses(workers))
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "2")


# What is refused


def refused(source, out, *words, name="listing", **options):
    with pytest.raises(DataError) as error:
        run(source, out, name=name, **options)
    said = str(error.value)
    assert "\n" not in said
    for word in words:
        assert str(word) in said, said


LISTINGS = {
    "path,frame\n": ["lists no image"],
    "": ["no column called image"],
    "picture,frame\na.png,1\n": ["no column called image", "picture"],
    "image,frame\na.png,1\nb.png,first\n": ["row 3", "'first'"],
    "image,frame\na.png,1.5\n": ["row 2", "1.5"],
    "image,frame\na.png,-1\n": ["row 2", "-1"],
    "image,frame\na.png\n": ["row 2", "1 fields"],
    "image\na.png\n\n": ["row 3", "empty"],
    'image\n""\n': ["row 2", "no path"],
    "image,axis\na.png,up\n": ["row 2", "'up'"],
    "image\na.png\nb.png\n./a.png\n": ["a.png is listed twice", "rows 2 and 4"],
    "image\nnowhere://a.png\n": ["nowhere://"],
    'image\n"a\n': ["cannot be read"],
}


@pytest.mark.parametrize("text", LISTINGS)
def test_bad_listings(tmp_path, text):
    path = tmp_path / "listing.csv"
    path.write_text(text)
    refused(listing(str(path)), tmp_path / "out", path, *LISTINGS[text], name=str(path))
    assert not (tmp_path / "out").exists()


def test_bad_parquet(tmp_path):
    path = tmp_path / "listing.parquet"
    path.write_bytes(b"PAR1 and no more")
    refused(listing(str(path)), tmp_path / "out", path, "cannot be read", name=str(path))
    pq.write_table(pa.table({"image": [1, 2]}), path)
    refused(listing(str(path)), tmp_path / "out", "row 1: image is 1", name=str(path))
    pq.write_table(pa.table({"image": ["a", None]}), path)
    refused(listing(str(path)), tmp_path / "out", "row 2: image is None", name=str(path))
    pq.write_table(pa.table({"image": ["a", "b"], "frame": ["1", "x"]}), path)
    refused(listing(str(path)), tmp_path / "out", "row 2: frame 'x'", name=str(path))
    refused(listing(str(tmp_path / "no.parquet")), tmp_path / "out", "no.parquet", name="no.parquet")


def test_frames_that_pandas_made_floats_of(tmp_path):
    path = tmp_path / "listing.parquet"
    pq.write_table(pa.table({"image": ["a", "a", "b"], "frame": [1.0, 2.0, float("nan")]}), path)
    assert [entry.frame for entry in listing(str(path))()] == [1, 2, None]


def test_a_library_that_lacks_is_named(tmp_path):
    path = tmp_path / "listing.csv"
    path.write_text("image\ngs://bucket/a.png\n")
    with pytest.raises(MissingExtraError, match=r"gs:// needs a library of its own.*gcsfs"):
        run(listing(str(path)), tmp_path / "out")


def test_another_run_is_not_mixed_in(tmp_path):
    out = tmp_path / "out"
    run(entries("abc"), out)
    refused(entries("abd"), out, "source differ", "--overwrite")
    refused(entries("abc"), out, "maps differ", maps="npy")
    refused(entries("abc"), out, "threads differ", executor=LocalProcesses(1, 2))
    run(entries("abd"), out, overwrite=True)
    assert [Path(row["image"]).name for row in rows(out)] == ["a", "b", "d"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    refused(entries("abc"), tmp_path / "other", "holds no run over an archive", overwrite=True)
    refused(entries([str(out / "rows" / "a.png")]), out, "lies in")
    (out / "archive.json").write_text("[")
    refused(entries("abd"), out, "damaged")


def test_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    refused(entries("a"), tmp_path / "file" / "out", "cannot write there")
    refused(entries("a"), Path("/proc/madclip"), "cannot write there")


def test_a_full_disk_loses_nothing(tmp_path):
    """The size of files is limited, which the system says as it says that a disk is full; then it goes on."""
    out = tmp_path / "out"
    table = write_listing(tmp_path / "listing.parquet", 2 * CHUNK + 1, image="x" * 30)
    run(listing(str(table)), tmp_path / "whole", name=str(table))
    small = min(len(content) for content in bytes_of(tmp_path / "whole").values())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (small - 1, limits[1]))
    try:
        refused(listing(str(table)), out, "part-000000.parquet: cannot be written", os.strerror(errno.EFBIG))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert bytes_of(out) == {}
    run(listing(str(table)), out, name=str(table))
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_a_damaged_part_is_named(tmp_path):
    out = tmp_path / "out"
    run(entries("abc"), out)
    part = out / "rows" / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    refused(entries("abc"), out, part, "damaged; delete it")
    part.unlink()
    assert run(entries("abc"), out) == (3, 3, 0)


def test_names_that_are_no_unicode(tmp_path):
    path = tmp_path / "part.parquet"
    row = dict.fromkeys(COLUMNS, "a\udc80") | dict.fromkeys(("score", "threshold", "probability", "p_value"))
    row |= {"number": 0, "frame": None, "familiar": None}
    assert write_part(path, [row], 1) == Counts(1, 1, 1)
    assert pq.read_table(path).to_pylist()[0]["image"] == "a\\udc80"
