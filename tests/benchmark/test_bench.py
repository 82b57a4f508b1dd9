"""Experiments: every cell once, the same for any number of workers, and tables that keep ours and theirs apart."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from madclip.benchmark.experiments import ABLATIONS, Cell, cells_of, tasks_of
from madclip.benchmark.runner import Plan, find_sets, read_cells, run
from madclip.benchmark.tables import Table, render, tables_of
from madclip.errors import CheckpointError, DataError, RecipeError
from madclip.recipe import Recipe

CHANGES = {"image_size": 64, "variants": ("identity",), "epochs": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    from conftest import write_images

    folder = tmp_path_factory.mktemp("sets")
    write_images(folder / "Brain_AD", {"valid": (4, 4), "test": (5, 5)})
    write_images(folder / "mine", {"valid": (4, 4), "test": (5, 5)}, masks=False, seed=1)
    (folder / "empty").mkdir()
    return folder


def plan(root, **changes):
    folders = find_sets(root)
    given = {"experiment": "real", "backbone": "stand-in", "folders": folders, "changes": CHANGES}
    return Plan(**given | {"objectives": dict.fromkeys(folders, "Brain")} | changes)


class TestCells:
    def test_table_1(self):
        cells = cells_of("table1", [], ["madclip", "patchcore"], 3)
        assert len(cells) == len(set(cells)) == 6 * 1 * 3 * 2
        assert {cell.shots for cell in cells} == {16}

    def test_table_3_crosses_sets(self):
        cells = cells_of("table3", [], ["madclip"], 1)
        assert ("BrainMRI", "ADNI") in {(cell.source, cell.target) for cell in cells}
        assert tasks_of("BrainMRI->ADNI") == ("AC",)

    def test_ablations_change_one_field_each(self):
        cells = cells_of("ablations", [], ["madclip"], 1)
        assert {cell.method for cell in cells} == {"madclip", *(f"madclip-{letter}" for letter in "abcdef")}
        plain = Recipe().to_dict()
        for _, changes in ABLATIONS.values():
            changed = Recipe().replace(**changes).to_dict()
            assert [key for key in plain if plain[key] != changed[key]] == list(changes)

    @pytest.mark.parametrize(
        ("methods", "seeds", "message"), [(["what"], 1, "unknown method"), (["madclip"], 0, "at least 1")]
    )
    def test_refuses(self, methods, seeds, message):
        with pytest.raises(RecipeError, match=message):
            cells_of("real", ["a"], methods, seeds)

    def test_a_baseline_has_no_ablations(self):
        with pytest.raises(RecipeError, match="no ablations"):
            cells_of("ablations", [], ["patchcore"], 1)


class TestRun:
    def test_sets_by_registered_name_or_folder(self, root):
        assert list(find_sets(root)) == ["BrainMRI", "mine"]

    def test_no_sets(self, tmp_path):
        with pytest.raises(DataError, match="no folder in it is a data set"):
            find_sets(tmp_path)

    def test_workers_and_order_do_not_matter(self, root, tmp_path):
        cells = cells_of("real", ["BrainMRI", "mine"], ["madclip", "nearest-mean"], 1, [2])
        assert run(cells, plan(root), tmp_path / "one") == []
        assert run(list(reversed(cells)), plan(root), tmp_path / "two", workers=2) == []
        one, two = (tmp_path / name / "results.csv" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        rows = list(csv.DictReader(one.open()))
        assert {row["method"] for row in rows} == {"madclip", "nearest-mean"}
        assert not [row for row in rows if row["set"] == "mine" and row["metric"].startswith("pixel")]
        values = [float(row["value"]) for row in rows]
        assert min(values) >= 0 <= max(values) <= 1

    def test_a_finished_cell_is_not_run_again(self, root, tmp_path):
        cells = cells_of("real", ["mine"], ["nearest-mean"], 1, [2])
        run(cells, plan(root), tmp_path)
        (only,) = (tmp_path / "cells").iterdir()
        before = only.stat().st_mtime_ns
        run(cells_of("real", ["mine"], ["nearest-mean"], 2, [2]), plan(root), tmp_path)
        assert only.stat().st_mtime_ns == before
        assert len(list((tmp_path / "cells").iterdir())) == 2

    def test_another_experiment_is_refused(self, root, tmp_path):
        run([], plan(root), tmp_path)
        with pytest.raises(CheckpointError, match="select differ"):
            run([], plan(root, select="val"), tmp_path)

    def test_a_cell_that_fails_is_said_and_the_rest_goes_on(self, root, tmp_path):
        cells = [Cell("mine", 99, 0, "nearest-mean"), Cell("mine", 2, 0, "nearest-mean")]
        (line,) = run(cells, plan(root), tmp_path)
        assert "mine, 99 shots, seed 0, nearest-mean: fewer images than shots" in line
        assert list(read_cells(tmp_path, cells)) == cells[1:]

    def test_no_name_of_a_file_is_kept(self, root, tmp_path):
        cells = cells_of("real", ["mine"], ["nearest-mean"], 1, [2])
        run(cells, plan(root), tmp_path)
        files = [*tmp_path.glob("*.*"), *tmp_path.glob("cells/*")]
        assert len(files) == 3
        assert not [path for path in files if "Maier" in path.read_text()]


def test_killed_and_resumed(root, tmp_path):
    out = tmp_path / "out"
    command = [
        str(Path(sys.executable).with_name("madclip")),
        "bench",
        "real",
        "--data",
        str(root),
        "--out",
        str(out),
        "--json",
    ]
    command += ["--objective", "mine=Chest", "--shots", "2", "--seeds", "2", "--methods", "nearest-mean,logistic"]
    command += ["--backbone", "stand-in", "--set", "image_size=64"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    while not list(out.glob("cells/*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = {path: path.stat().st_mtime_ns for path in out.glob("cells/*.json")}
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["finished"] == 8
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in first.items())
    assert len(list(csv.DictReader((out / "results.csv").open()))) > 8
    for kind in ("md", "csv", "tex", "html"):
        assert "nearest-mean" in (out / f"real.{kind}").read_text()


class TestTables:
    def test_published_and_ours_stand_apart(self):
        cells = cells_of("table1", [], ["madclip"], 2)
        found = {
            Cell("BrainMRI", 16, seed, "madclip"): {
                "metrics": {"image_auroc": [value, None, None], "pixel_auroc": [None] * 3}
            }
            for seed, value in enumerate((0.8, 0.9))
        }
        (table,) = tables_of("table1", cells, found)
        row = next(row for row in table.rows if row[:2] == ("BrainMRI", "AC"))
        # Mean 85, Student's t of two draws: 12.706 x 7.07 / sqrt(2).
        assert row[4] == "85.0 [21.5, 148.5]"
        from madclip.benchmark.published import published

        theirs = published("table1", "BrainMRI", "MadCLIP", 16, "AC")
        assert row[5] == f"{theirs:.2f}"
        assert row[6].startswith(f"{85 - theirs:+.1f}")
        assert next(row for row in table.rows if row[0] == "HIS")[4] == "not run"

    def test_drop_of_an_ablation(self):
        cells = cells_of("ablations", [], ["madclip"], 1)
        metric = {"pixel_auroc": [None] * 3}
        found = {
            Cell("HIS", 16, 0, "madclip"): {"metrics": metric | {"image_auroc": [0.9, None, None]}},
            Cell("HIS", 16, 0, "madclip-a"): {"metrics": metric | {"image_auroc": [0.85, None, None]}},
        }
        (table,) = tables_of("ablations", cells, found)
        assert next(row for row in table.rows if row[1] == "a" and row[3] == "AC")[4] == "+5.0"

    def test_paired_with_the_reference(self):
        labels, good, bad = [0, 0, 1, 1] * 10, [0.1, 0.2, 0.8, 0.9] * 10, [0.1, 0.9, 0.2, 0.8] * 10
        metrics = {"image_auroc": [0.5, None, None], "pixel_auroc": [None] * 3}
        cells = [Cell("x", 2, 0, "madclip"), Cell("x", 2, 0, "winclip")]
        found = {
            cell: {"metrics": metrics, "labels": labels, "scores": scores}
            for cell, scores in zip(cells, (good, bad), strict=True)
        }
        *_, paired = tables_of("real", cells, found)
        assert paired.rows == (("x", "winclip", "+50.0", "1 of 1"),)

    @pytest.mark.parametrize(
        ("kind", "expected"), [("md", r"a\|b"), ("csv", "a|b"), ("tex", r"50\% \& \_x"), ("html", "50% &amp; _x&lt;")]
    )
    def test_formats_escape(self, kind, expected):
        text = render([Table("t", ("head",), (("a|b",), ("50% & _x<",)), ("note",))], kind)
        assert expected in text
        assert "note" in text or kind == "csv"


class TestCommand:
    def call(self, *words):
        from madclip.cli.commands import app

        return CliRunner().invoke(app, ["bench", *map(str, words)])

    def test_says_what_is_missing(self, root, tmp_path):
        words = ["table1", "--data", root, "--out", tmp_path, "--methods", "nearest-mean", "--seeds", 1, "--shots", 2]
        result = self.call(*words, "--backbone", "stand-in", "--set", "image_size=64")
        assert result.exit_code == 0
        assert "LiverCT: not in" in result.stderr
        assert "| BrainMRI | AC | 2 | nearest-mean |" in result.stdout
        assert "| HIS | AC | 2 | nearest-mean | not run |" in result.stdout

    def test_writes_a_page_between_its_marks(self, root, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("before\n<!-- bench -->\nold\n<!-- end bench -->\nafter\n")
        words = ["real", "--data", root, "--out", tmp_path / "out", "--methods", "nearest-mean", "--seeds", 1]
        words += ["--shots", 2, "--backbone", "stand-in", "--set", "image_size=64", "--docs", page]
        assert self.call(*words, "--objective", "mine=Chest").exit_code == 0
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert "nearest-mean" in text

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["what"], "unknown experiment"),
            (["real"], "say what it shows"),
            (["real", "--objective", "nobody=x"], "no such set"),
            (["real", "--shots", "two"], "whole numbers"),
            (["table1", "--methods", ","], "no method"),
        ],
    )
    def test_refuses(self, root, tmp_path, words, message):
        result = self.call(*words, "--data", root, "--out", tmp_path / "out")
        assert result.exit_code != 0
        assert message in str(result.exception)
