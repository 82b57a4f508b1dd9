"""Help, choices, and progress as people see it."""

import io
from typing import get_args

import pytest
import typer.main
from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TextColumn

from madclip import cli
from madclip.cli.console import ProgressBars, ProgressLines


def commands(group=None, path=("madclip",)):
    group = group or typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


EVERY = dict(commands())


@pytest.mark.parametrize("name", EVERY)
def test_every_line_of_help_is_a_sentence(name):
    command = EVERY[name]
    assert command.get_short_help_str(57).endswith("."), command.help
    assert not command.get_short_help_str(57).endswith("..."), "too long for a line of `madclip --help`"
    for parameter in command.params:
        text = parameter.help or ""
        assert text, parameter.name
        assert text[0].isupper() or text[0] in "`-", (parameter.name, text)
        assert not text.startswith("Of "), (parameter.name, text)
        assert text.endswith("."), (parameter.name, text)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("fit --help", ["last", "val", "test-best", "madclip", "paper", "released", "auto|cpu|cuda|mps"]),
        ("predict --help", ["tiff", "npy", "none", "auto|torch|openvino|onnx|FOLDER"]),
        ("evaluate --help", ["native", "recipe"]),
        ("export --help", ["openvino", "onnx", "torch", "fp32", "bf16", "int8"]),
        ("import-released --help", ["max", "mean"]),
        ("phantoms --help", ["brain", "histology", "generic"]),
    ],
)
def test_choices_are_shown_in_help(madclip, words, shown):
    result = madclip(*words.split())
    assert result.code == 0
    assert all(word in result.out for word in shown)


def test_choices_are_those_of_the_package():
    from madclip.cli import demo, models, options
    from madclip.export.engines import PRECISIONS
    from madclip.phantoms import MODALITIES
    from madclip.recipe import PRESETS

    assert set(get_args(options.Preset)) == set(PRESETS)
    assert get_args(demo.Modality) == MODALITIES
    assert set(get_args(models.Format)) == set(PRECISIONS)
    assert set(get_args(models.Precision)) == {kind for kinds in PRECISIONS.values() for kind in kinds}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fit", ["--out", "madclip fit --help"]),
        ("evaluate", ["detector", "madclip evaluate --help"]),
        ("fit DATA --out d --shotz 3", ["--shotz", "madclip fit --help"]),
        ("fit DATA --out d --seed many", ["--seed", "integer"]),
        ("predikt", ["predikt", "predict"]),
        ("data chekc", ["chekc"]),
        ("repeat DATA --out r --seeds 0", ["--seeds"]),
        ("export d --data x --precision fp64", ["--precision", "fp64", "int8"]),
    ],
)
def test_what_cannot_be_parsed_is_one_line(madclip, words, said):
    madclip(*words.split()).one_line(*said)


def test_a_group_without_a_command_shows_its_help(madclip):
    result = madclip("data")
    assert (result.code, result.out) == (2, "")
    assert "check" in result.err
    assert "error" not in result.err


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def lines():
    """A ProgressLines with its clock and what it wrote."""
    clock, written = Clock(), []
    return ProgressLines(written.append, clock), clock, written


def test_what_is_quick_says_nothing(lines):
    progress, clock, written = lines
    for done in range(1, 101):
        clock.now += 0.149
        progress("fit", done, 100, loss=0.5)
    assert written == []


def test_a_line_every_fifteen_seconds_with_the_time_left(lines):
    progress, clock, written = lines
    progress("fit", 0, 100)
    for done in range(1, 41):
        clock.now += 1
        progress("fit", done, 100, loss=0.25, part="seed 1 of 3")
    assert written == [
        "fit: 15 of 100, seed 1 of 3, loss 0.250, 85 s left",
        "fit: 30 of 100, seed 1 of 3, loss 0.250, 70 s left",
    ]


def test_time_left_is_of_the_whole_stage_over_all_folds_and_from_where_it_began(lines):
    progress, clock, written = lines
    progress("encode", 1, 8)
    clock.now += 10
    progress("out-of-fold", 200, 400)  # resumed: half of it was there
    clock.now += 20
    progress("out-of-fold", 210, 400, part="fold 3 of 4")  # 2 s each, 190 to go
    assert written == ["out-of-fold: 210 of 400, fold 3 of 4, 6 min left"]


def test_a_stage_that_begins_again_is_timed_anew(lines):
    progress, clock, written = lines
    progress("evaluate", 0, 10)
    clock.now += 10_000
    progress("evaluate", 10, 10)
    progress("evaluate", 0, 10)
    clock.now += 20
    progress("evaluate", 5, 10)
    assert written[-1] == "evaluate: 5 of 10, 20 s left"


def test_bars_show_each_stage_once_with_part_and_loss():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    columns = [
        TextColumn(text) for text in ("{task.description}", "{task.completed}/{task.total}", "{task.fields[said]}")
    ]
    with Bars(*columns, console=console, auto_refresh=False) as bars:
        progress = ProgressBars(bars)
        progress("encode", 8, 8)
        progress("out-of-fold", 30, 120, loss=0.5, part="fold 2 of 4")
        progress("out-of-fold", 90, 120, loss=0.25, part="fold 4 of 4")
        bars.refresh()
        assert [(task.description, task.completed, task.total) for task in bars.tasks] == [
            ("encode", 8, 8),
            ("out-of-fold", 90, 120),
        ]
    assert "fold 4 of 4, loss 0.250" in screen.getvalue()


def test_nothing_is_drawn_where_there_is_no_terminal(madclip, small, small_data, tmp_path):
    result = madclip("fit", small_data, "--out", tmp_path / "d", "--shots", 2, "--folds", 2, *small)
    assert (result.code, result.err) == (0, "")
