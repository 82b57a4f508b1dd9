"""Experiments: every cell once, the same for any number of workers, and tables that keep ours and theirs apart."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from madclip.benchmark.cell import CellWork
from madclip.benchmark.experiments import ABLATIONS, SHOTS, Cell, cells_of, recipe_of, tasks_of
from madclip.benchmark.plan import Plan, find_sets, own_splits
from madclip.benchmark.published import _numbers
from madclip.benchmark.render import Table, render
from madclip.benchmark.runner import read_cells, run
from madclip.benchmark.tables import Run, mean_difference, tables_of
from madclip.benchmark.tokens import TokenMemory
from madclip.errors import CheckpointError, DataError, RecipeError
from madclip.methods import BASELINES
from madclip.metrics.compare import paired_bootstrap
from madclip.metrics.scored import Scored
from madclip.recipe import Recipe
from madclip.scale.executor import LocalProcesses

CHANGES = {"image_size": 64, "variants": ("identity",), "epochs": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory, make_images):
    folder = tmp_path_factory.mktemp("sets")
    make_images(folder / "Brain_AD", {"valid": (4, 4), "test": (5, 5)})
    make_images(folder / "mine", {"valid": (4, 4), "test": (5, 5)}, masks=False, seed=1)
    (folder / "empty").mkdir()
    return folder


def plan(root, **changes):
    folders = find_sets(root).folders
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
        cells = cells_of("ablations", ["mine"], ["madclip"], 1)
        assert {cell.set for cell in cells} == {"mine"}
        assert {cell.method for cell in cells} == {"madclip", *(f"madclip-{letter}" for letter in "abcdef")}
        plain = Recipe().to_dict()
        for _, changes in ABLATIONS.values():
            changed = Recipe().replace(**changes).to_dict()
            assert [key for key in plain if plain[key] != changed[key]] == list(changes)

    def test_modes_without_abnormal_images(self):
        cells = cells_of("normal-only", ["mine"], ["madclip", "patchcore"], 2)
        assert {cell.method for cell in cells} == {"madclip", "madclip-memory", "patchcore"}
        assert {cell.shots for cell in cells} == {1, 2, 4, 8, 16}
        assert {cell.seed for cell in cells_of("zero-shot", ["mine"], ["madclip"], 3)} == {0}
        with pytest.raises(
            RecipeError, match=r"'mvfa' learns from images that normal-only does not give it.*patchcore"
        ):
            cells_of("normal-only", [], ["mvfa"], 1)
        with pytest.raises(RecipeError, match="'patchcore' learns from"):
            cells_of("zero-shot", [], ["patchcore"], 1)
        assert recipe_of("madclip-memory", {"epochs": 9}, "normal-only") == Recipe(epochs=9, text_weight=0.0)
        assert recipe_of("madclip-c", {}, "ablations") == Recipe(dual_branch=False)

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
    def test_a_set_is_a_registered_one_only_where_that_is_certain(self, root, tmp_path):
        names = {"Brain_AD": "Brain_AD", "brain": "mine", "Liver": "mine", "CHEST": "mine", "renamed": "mine"}
        for name, source in names.items():
            shutil.copytree(root / source, tmp_path / name)
        (tmp_path / "renamed" / "prepared.json").write_text('{"set": "OCTDL"}')
        (tmp_path / "empty").mkdir()
        found = find_sets(tmp_path)
        assert {name: path.name for name, path in found.folders.items()} == {
            "BrainMRI": "Brain_AD",
            "CHEST": "CHEST",
            "Liver": "Liver",
            "brain": "brain",
            "OCTDL": "renamed",
        }
        assert list(found.others) == ["empty"]
        assert [line.partition(":")[0] for line in found.said] == ["Brain_AD", "CHEST", "Liver", "brain", "renamed"]
        said = dict(line.split(": ", 1) for line in found.said)
        assert said["Brain_AD"] == "taken for the registered set BrainMRI"
        assert said["brain"].endswith("if it is the registered BrainMRI, name the folder BrainMRI")
        # What the registry says of BrainMRI is not said of somebody's own folder.
        assert tasks_of("BrainMRI") == tasks_of("brain") == ("AC", "AS")
        assert (tasks_of("Chest"), tasks_of("CHEST")) == (("AC",), ("AC", "AS"))

    def test_own_splits_are_those_prepared_here(self, tmp_path):
        for name in ("OCT17", "OCTDL", "BrainMRI"):
            (tmp_path / name).mkdir()
        for name in ("OCT17", "BrainMRI"):
            (tmp_path / name / "prepared.json").write_text(json.dumps({"set": name}))
        assert own_splits({path.name: path for path in tmp_path.iterdir()}) == {"OCT17"}

    def test_a_damaged_record_of_the_preparation_is_said(self, root, tmp_path):
        for name in ("one", "two"):
            shutil.copytree(root / "mine", tmp_path / name)
        (tmp_path / "one" / "prepared.json").write_text("{}")
        found = find_sets(tmp_path)
        assert list(found.folders) == ["two"]
        assert "prepare the set again" in found.others["one"]

    def test_patients_of_another_set_are_other_people(self, root, tmp_path):
        cells = [Cell(name, 2, 0, "nearest-mean") for name in ("BrainMRI->mine", "mine")]
        for folder in ("BrainMRI", "mine"):
            # The same names of patients on both sides, and the same in valid/ and test/.
            shutil.copytree(root / {"BrainMRI": "Brain_AD"}.get(folder, folder), tmp_path / "sets" / folder)
            for path in [*(tmp_path / "sets" / folder).rglob("Maier*.png")]:
                path.rename(path.with_name(path.name.replace("valid", "").replace("test", "")))
        assert run(cells, plan(tmp_path / "sets"), tmp_path / "out") == []
        crossed = read_cells(tmp_path / "out", cells)[cells[0]]
        assert len(crossed["labels"]) == 10
        work = CellWork(plan(tmp_path / "sets"), tmp_path)
        groups = [{sample.group for sample in work.dataset(name).samples} for name in ("BrainMRI", "mine")]
        assert None not in groups[0] | groups[1]
        assert not groups[0] & groups[1]

    def test_no_sets(self, tmp_path):
        with pytest.raises(DataError, match="no folder in it is a data set"):
            find_sets(tmp_path)

    def test_workers_and_order_do_not_matter(self, root, tmp_path):
        cells = cells_of("real", ["BrainMRI", "mine"], ["madclip", "nearest-mean"], 1, [2])
        assert run(cells, plan(root), tmp_path / "one") == []
        assert run(list(reversed(cells)), plan(root), tmp_path / "two", executor=LocalProcesses(2)) == []
        one, two = (tmp_path / name / "results.csv" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        rows = list(csv.DictReader(one.open()))
        assert {row["method"] for row in rows} == {"madclip", "nearest-mean"}
        assert not [row for row in rows if row["set"] == "mine" and row["metric"].startswith("pixel")]
        values = [float(row["value"]) for row in rows]
        assert min(values) >= 0 <= max(values) <= 1

    def test_cells_that_end_their_worker_are_told(self, root, tmp_path):
        class Losing:
            threads = 1

            def run(self, work, items, *, lost):
                return map(lost, items)

        cells = cells_of("real", ["mine"], ["nearest-mean"], 2, [2])
        failed = run(cells, plan(root), tmp_path, executor=Losing())
        assert len(failed) == 2
        assert all("ended its worker each time" in line for line in failed)

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
        with pytest.raises(CheckpointError, match="mine differ"):
            run([], plan(root, objectives={"BrainMRI": "Brain", "mine": "Chest"}), tmp_path)

    def test_other_images_of_the_same_names_are_refused(self, root, tmp_path):
        mine = shutil.copytree(plan(root).folders["mine"], tmp_path / "copy")
        out, copied = tmp_path / "out", plan(root, folders={"mine": mine})
        run([], copied, out)
        facts = json.loads((out / "plan.json").read_text())
        del facts["sets"]["mine"]["content"]
        (out / "plan.json").write_text(json.dumps(facts))
        run([], copied, out)  # a run from before goes on
        one, two, *_ = sorted(mine.rglob("*.png"))
        one.write_bytes(two.read_bytes())
        with pytest.raises(CheckpointError, match="mine differ"):
            run([], copied, out)

    def test_sets_may_join(self, root, tmp_path):
        whole = plan(root)
        run([], plan(root, folders={"mine": whole.folders["mine"]}), tmp_path)
        run([], whole, tmp_path)
        run([], plan(root, folders={"mine": whole.folders["mine"]}), tmp_path)
        assert list(json.loads((tmp_path / "plan.json").read_text())["sets"]) == ["BrainMRI", "mine"]

    def test_test_images_are_encoded_once_and_it_makes_no_difference(self, root, tmp_path):
        cells = cells_of("real", ["BrainMRI"], ["madclip", "nearest-mean", "winclip"], 1, [2])
        memories = {"one": TokenMemory(), "two": TokenMemory(room=0)}
        for name, memory in memories.items():
            work = CellWork(plan(root), tmp_path / name, memory)
            assert [work(cell) for cell in cells] == [None] * 3
        kept = len(memories["one"])
        assert kept
        # Nearest mean reads what MadCLIP read; WinCLIP reads the whole images too, and windows of its own.
        again = memories["one"].found
        batches = again // 2
        assert again == 2 * batches > 0
        assert len(memories["two"]) == memories["two"].found == 0
        for cell in cells:
            one, two = (json.loads(cell.path(tmp_path / name).read_text()) for name in ("one", "two"))
            assert one == two
        work = CellWork(plan(root), tmp_path / "more", memories["one"])
        work(Cell("BrainMRI", 2, 1, "nearest-mean"))
        assert len(memories["one"]) == kept
        work(Cell("mine", 2, 0, "nearest-mean"))
        assert 0 < len(memories["one"]) < kept
        work(Cell("BrainMRI", 2, 1, "nearest-mean"))
        assert memories["one"].found == again + batches

    def test_what_the_pairing_needs(self, root, tmp_path):
        cells = cells_of("real", ["mine"], ["nearest-mean"], 2, [2])
        run(cells, plan(root), tmp_path)
        one, other = read_cells(tmp_path, cells).values()
        assert one["images"] == other["images"]
        # Two slices a patient.
        assert len(one["groups"]) == 10
        assert len(set(one["groups"])) == 6

    def test_a_mode_learns_from_nothing_else(self, root, tmp_path):
        for experiment, methods, learned in (
            ("normal-only", ["madclip", "patchcore"], (2, 0)),
            ("zero-shot", ["madclip"], (0, 0)),
        ):
            cells = cells_of(experiment, ["mine"], methods, 1, [2] if learned[0] else [])
            out = tmp_path / experiment
            assert run(cells, plan(root, experiment=experiment), out) == []
            for facts in read_cells(out, cells).values():
                fit = facts["provenance"]["fit"]
                assert (fit["normal"], fit["abnormal"]) == learned
                assert 0 <= facts["metrics"]["image_auroc"][0] <= 1

    def test_one_detector_of_all_sets(self, root, make_images, tmp_path):
        folders = {"mine": root / "mine"} | {
            name: make_images(tmp_path / name, {"valid": (3, 3), "test": (3, 3)}, seed=seed)
            for seed, name in enumerate(("other", "third"), 5)
        }
        shown = {"mine": "Brain", "other": "Liver", "third": "Chest"}
        several = plan(root, experiment="joint", folders=folders, objectives=shown)
        cells = cells_of("joint", [*folders], ["madclip"], 1, [2])
        assert {cell.method for cell in cells} == {"madclip", "madclip-joint", "madclip-routed", "madclip-without"}
        assert run(cells, several, tmp_path / "out") == []
        for cell, facts in read_cells(tmp_path / "out", cells).items():
            learned = {"madclip-routed": 6, "madclip-without": 4}.get(cell.method, 2)
            assert facts["provenance"]["fit"]["normal"] == learned
            assert ("routed" in facts["metrics"]) == (cell.method in ("madclip-routed", "madclip-without"))
            if cell.method == "madclip-without":
                assert facts["metrics"]["routed"][0] == 0, "there is nothing right to take it for"
        (line,) = run(
            [Cell("mine", 2, 0, "madclip-joint")],
            plan(root, experiment="joint", folders=folders, objectives=shown | {"other": "Brain"}),
            tmp_path / "same",
        )
        assert "other: another set shows 'Brain' too" in line

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
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(out.glob("results.csv"))
    first = {path: path.stat().st_mtime_ns for path in out.glob("cells/*.json")}
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["finished"] == 8
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in first.items())
    assert len(list(csv.DictReader((out / "results.csv").open()))) > 8
    for kind in ("md", "csv", "tex", "html"):
        assert "nearest-mean" in (out / f"real.{kind}").read_text()


def measured(image, pixel=None, **facts):
    plain = {"labels": [0, 1], "scores": [0.2, 0.8], "groups": None, "images": "a"}
    return plain | {"metrics": {"image_auroc": [image, None, None], "pixel_auroc": [pixel, None, None]}} | facts


class TestTables:
    def test_published_and_ours_stand_apart(self):
        cells = cells_of("table1", [], ["madclip"], 2)
        found = {Cell("BrainMRI", 16, seed, "madclip"): measured(v) for seed, v in enumerate((0.8, 0.9))}
        (table,) = tables_of(Run("table1", cells, found))
        assert table.head[4:6] == ("ours, tiny", "published, ViT-L/14")
        row = next(row for row in table.rows if row[2:4] == ("BrainMRI", "AC"))
        # Mean 85, Student's t of two draws: 12.706 x 7.07 / sqrt(2) = 63.5, cut to 100; the paper says 95.90.
        assert row[4:] == ("85.0 [21.5, 100.0]", "95.90", "-10.9 [-74.4, +52.6]")
        assert next(row for row in table.rows if row[2] == "HIS")[4:6] == ("not run", "90.14")
        # One set is no average of six.
        assert next(row for row in table.rows if row[2:4] == ("Average", "AC"))[4:6] == ("not run", "94.08")

    def test_every_published_number_of_our_methods_is_shown(self):
        for experiment in ("table1", "table2", "table3"):
            cells = cells_of(experiment, [], ["madclip", *BASELINES], 1)
            (table,) = tables_of(Run(experiment, cells, {}))
            shown = [row[5] for row in table.rows if row[5] != "-"]
            theirs = [v for k, v in _numbers().items() if k[0] == experiment and k[3] in SHOTS[experiment]]
            assert sorted(shown) == sorted(f"{value:.2f}" for value in theirs)

    def test_an_average_is_of_all_sets_draw_by_draw(self):
        cells = cells_of("table1", [], ["madclip"], 2)
        found = {cell: measured(0.8 + 0.1 * cell.seed, 0.9) for cell in cells}
        (table,) = tables_of(Run("table1", cells, found))
        average = {row[3]: row[4] for row in table.rows if row[2] == "Average"}
        assert average == {"AC": "85.0 [21.5, 100.0]", "AS": "90.0 [90.0, 90.0]"}

    def test_modes_without_abnormal_images(self):
        cells = cells_of("normal-only", ["mine"], ["madclip", "patchcore"], 2, [1, 16])
        found = {
            cell: measured(0.8 + 0.1 * cell.seed) for cell in cells if (cell.method, cell.shots) != ("patchcore", 1)
        }
        for cell, facts in found.items():
            if cell.method == "madclip" and cell.shots == 16:
                facts["metrics"] = facts["metrics"] | {"specificity": [0.9 + 0.04 * cell.seed, None, None]}
        *tables, rates, elsewhere = tables_of(Run("normal-only", cells, found))
        assert tables[0].head[1:] == ("1 normal images alone", "16 normal images alone")
        titles = [f"madclip against each method, {count} images" for count in (16, 1)]
        assert [table.title for table in tables[-2:]] == titles
        assert {row[1] for row in tables[-1].rows} == {"madclip-memory"}  # at one image, where patchcore was not run
        # 10 and 6 percent of normal test images: mean 8, Student's t of two draws 12.706 x 2.83 / sqrt(2) = 25.4.
        assert rates.rows == (("madclip", "16", "8.0 [0.0, 33.4]; 2 draws", "8.0"),)
        univad = next(row for row in elsewhere.rows if row[0] == "UniVAD")
        assert univad[elsewhere.head.index("BrainMRI AC")] == "80.2 †"
        assert all(cell == "-" or "†" in cell for row in elsewhere.rows for cell in row[1:])
        assert "MVFA" in tables_of(Run("zero-shot", cells_of("zero-shot", ["mine"], ["madclip"], 1), {}))[-1].notes[0]

    def test_several_modalities_at_once(self):
        cells = cells_of("joint", ["one", "two"], ["madclip"], 2)
        drop = {"madclip": 0.9, "madclip-joint": 0.88, "madclip-routed": 0.87, "madclip-without": 0.6}
        found = {cell: measured(drop[cell.method]) for cell in cells}
        for cell, facts in found.items():
            shares = {"routed": [0.98, None, None], "unfamiliar": [0.05, None, None]}
            facts["metrics"] = facts["metrics"] | (shares if cell.method != "madclip" else {})
        means, *_, routing = tables_of(Run("joint", cells, found))
        assert {row[0]: row[3] for row in means.rows}["madclip-joint"] == "-2.0 [-2.0, -2.0]"
        assert routing.rows[0] == ("one", "98.0 [98.0, 98.0]", "5.0 [5.0, 5.0]", "5.0 [5.0, 5.0]")

    def test_numbers_selected_on_test_images_are_marked_each(self):
        cells = cells_of("table1", [], ["madclip", "patchcore"], 1)
        table, paired = tables_of(Run("table1", cells, {cell: measured(0.9) for cell in cells}, test_best=True))
        row = {row[0]: row for row in table.rows if row[2:4] == ("HIS", "AC")}
        assert (row["madclip"][4], row["madclip"][6]) == ("90.0†", "-0.1†")
        assert row["patchcore"][4] == "90.0"
        assert all(cell.endswith("†") for row in paired.rows for cell in row[2:])
        assert any("†" in note for note in table.notes)

    def test_own_splits_are_marked(self):
        cells = cells_of("table3", [], ["madclip"], 1)
        (table,) = tables_of(Run("table3", cells, {}, own_splits={"OCTDL"}))
        assert {row[2] for row in table.rows if row[2].endswith("*")} == {"OCT17->OCTDL*", "RESC->OCTDL*"}
        assert any("own split" in note for note in table.notes)

    def test_drop_of_an_ablation(self):
        cells = cells_of("ablations", ["HIS", "mine"], ["madclip"], 1)
        values = {"madclip": (0.9, 0.7), "madclip-a": (0.85, 0.71)}
        found = {
            Cell(name, 16, 0, method): measured(value)
            for method, two in values.items()
            for name, value in zip(("HIS", "mine"), two, strict=True)
        }
        mean, each = tables_of(Run("ablations", cells, found))
        # 5 points lost on one set, one gained on the other.
        assert next(row for row in mean.rows if row[1] == "a" and row[3] == "AC")[4:] == ("+2.0", "2", "+1.28")
        assert next(row for row in each.rows if row[1] == "a" and row[3] == "AC")[4:] == ("+5.0", "-1.0")
        assert next(row for row in mean.rows if row[1] == "b")[4] == "not run"

    def test_paired_with_the_reference(self):
        labels, good, bad = [0, 0, 1, 1] * 10, [0.1, 0.2, 0.8, 0.9] * 10, [0.1, 0.9, 0.2, 0.8] * 10
        cells = [Cell("x", 2, 0, "madclip"), Cell("x", 2, 0, "winclip")]
        same = {"labels": labels, "groups": None, "images": "a"}
        found = {cell: measured(0.5, scores=s, **same) for cell, s in zip(cells, (good, bad), strict=True)}
        *_, paired = tables_of(Run("real", cells, found))
        assert paired.rows[0][:3] == ("x", "winclip", "+50.0")
        found[cells[1]]["images"] = "b"
        assert len(tables_of(Run("real", cells, found))) == 1

    def test_one_draw_is_the_paired_bootstrap_and_patients_are_drawn_whole(self):
        generator = np.random.default_rng(0)
        labels = np.repeat([0, 1], 30)
        one, other = (labels + generator.normal(size=60) for _ in range(2))
        groups = [i // 3 for i in range(60)]
        pair = tuple({"labels": labels.tolist(), "groups": groups, "scores": s.tolist()} for s in (one, other))
        draws, (low, high) = mean_difference([pair])
        scored = Scored.of(labels, one, patients=groups)
        expected = paired_bootstrap(scored, scored.rescored(other))
        assert draws == pytest.approx([100 * expected.value])
        assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high))
        assert mean_difference([pair, pair])[1] == pytest.approx((low, high))

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [("md", r"a\|b"), ("csv", "a|b"), ("tex", r"50\% \& \_x\ensuremath{<}"), ("html", "50% &amp; _x&lt;")],
    )
    def test_formats_escape(self, kind, expected):
        text = render([Table("t", ("head",), (("a|b",), ("50% & _x<",)), ("note",))], kind)
        assert expected in text
        assert "note" in text or kind == "csv"


class TestCommand:
    def call(self, *words):
        from madclip.cli import app

        return CliRunner().invoke(app, ["bench", *map(str, words)])

    def test_says_what_is_missing(self, root, tmp_path):
        words = ["table1", "--data", root, "--out", tmp_path, "--methods", "nearest-mean", "--seeds", 1, "--shots", 2]
        result = self.call(*words, "--backbone", "stand-in", "--set", "image_size=64")
        assert result.exit_code == 0
        assert "LiverCT: not in" in result.stderr
        rows = [[cell.strip() for cell in line.split("|")][1:-1] for line in result.stdout.splitlines()]
        values = {tuple(row[:4]): row[4] for row in rows if len(row) == 7}
        assert 0 <= float(values["nearest-mean", "2", "BrainMRI", "AC"]) <= 100
        assert values["nearest-mean", "2", "HIS", "AC"] == "not run"
        assert "Brain_AD: taken for the registered set BrainMRI" in result.stderr

    def test_a_method_of_masks_is_not_run_without_them(self, root, tmp_path):
        words = ["real", "--data", root, "--out", tmp_path, "--methods", "bgad", "--seeds", 1, "--shots", 2, "--json"]
        result = self.call(*words, "--backbone", "stand-in", "--set", "image_size=64", "--objective", "mine=Chest")
        assert result.exit_code == 0
        assert "mine: no masks, without which bgad learns nothing; it is not run" in result.stderr
        assert json.loads(result.stdout)["finished"] == 1
        assert "not run" in (tmp_path / "real.md").read_text()

    def test_writes_a_page_between_its_marks(self, root, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("before\n<!-- bench real -->\nstale words\n<!-- end bench real -->\nafter\n")
        words = ["real", "--data", root, "--out", tmp_path / "out", "--methods", "nearest-mean", "--seeds", 1]
        words += ["--shots", 2, "--backbone", "stand-in", "--set", "image_size=64", "--docs", page]
        assert self.call(*words, "--objective", "mine=Chest").exit_code == 0
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "stale words" not in text
        assert "nearest-mean" in text

    def test_objectives_may_be_listed(self, tmp_path, root):
        data = tmp_path / "data"
        data.mkdir()
        (data / "mine").symlink_to(root / "mine")
        (data / "objectives.csv").write_text("set,objective\nmine,Chest\n")
        words = ["real", "--data", data, "--out", tmp_path / "out", "--methods", "nearest-mean", "--seeds", 1]
        words += ["--shots", 2, "--backbone", "stand-in", "--set", "image_size=64"]
        assert self.call(*words).exit_code == 0
        assert json.loads((tmp_path / "out/plan.json").read_text())["sets"]["mine"]["objective"] == "Chest"
        (data / "objectives.csv").write_text("name\nmine\n")
        assert "columns set and objective" in str(self.call(*words).exception)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["real"], "say what it shows"),
            (["ablations"], "say what it shows"),
            (["real", "--objective", "nobody=x"], "no such set"),
            (["real", "--shots", "two"], "whole numbers"),
            (["table1", "--methods", ","], "no method"),
        ],
    )
    def test_refuses(self, root, tmp_path, words, message):
        result = self.call(*words, "--data", root, "--out", tmp_path / "out")
        assert result.exit_code != 0
        assert message in str(result.exception)
