"""`madclip predict --table parquet`: the rows of the other tables, and options that make no sense."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from madclip.prediction import Row

FIELDS = tuple(Row.__dataclass_fields__)


def said(row):
    return {name: row[name] for name in FIELDS}


def test_both_tables_say_the_same(tmp_path, small_detector, small_data, madclip):
    images = [small_detector, small_data / "test", "--device", "cpu", "--json"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        page = madclip("predict", *images, "--out", tmp_path / "page", "--maps", "none", "--no-overlays")
    finally:
        torch.set_num_threads(threads)
    done = madclip("predict", *images, "--out", tmp_path / "out", "--table", "parquet", "--maps", "tiff")
    assert (page.code, done.code) == (0, 0), done
    assert json.loads(done.out)["scored"] == 12
    table = pq.read_table(tmp_path / "out" / "rows").to_pylist()
    assert [said(row) for row in table] == [said(row) for row in json.loads(page.out)["predictions"]]
    assert all((tmp_path / "out" / row["map"]).is_file() for row in table)


def test_rows_with_errors_are_told_by_the_exit_code(tmp_path, small_detector, madclip):
    (tmp_path / "listing.csv").write_text("image\nlost.png\n")
    options = ["--table", "parquet", "--device", "cpu", "--out", tmp_path / "out"]
    done = madclip("predict", small_detector, tmp_path / "listing.csv", *options)
    assert done.code == 2
    assert "0 images scored, 1 failed" in done.out
    (row,) = pq.read_table(tmp_path / "out" / "rows").to_pylist()
    assert row["error"].startswith(str(tmp_path / "lost.png"))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--workers", 2], "--table parquet"),
        (["--table", "page", "--engine-pool", "ray"], "--table parquet"),
        (["--table", "parquet", "--address", "auto"], "--engine-pool ray"),
        (["--table", "parquet", "--dicom", "seg"], "--dicom"),
        (["--engine-pool", "ray", "--address", "ray://head:10001"], "ray job submit"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, small_detector, small_data, madclip, options, word):
    done = madclip("predict", small_detector, small_data / "test", "--out", tmp_path / "out", *options)
    done.one_line(word)
    assert not (tmp_path / "out").exists()


def test_listings_are_given_alone(tmp_path, small_detector, small_data, madclip):
    options = ["--table", "parquet", "--out", tmp_path / "out"]
    madclip("predict", small_detector, "a.csv", small_data / "test", *options).one_line("a.csv", "alone")
    madclip("predict", small_detector, "s3://bucket/image.png", *options).one_line("list URLs")
