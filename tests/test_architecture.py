"""The house keeps its shape: who may import whom, how long files and functions are, how much a call takes."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "madclip"

FLOORS = (
    {"errors", "progress", "files", "memory", "grey_range", "heatmap"},
    {"metrics", "calibration"},
    {"recipe"},
    {"phantoms", "data"},
    {"backbones"},
    {"head"},
    {"training"},
    {"state", "prediction"},
    {"storage", "fitting"},
    {"released", "estimator"},
    {"detector"},
    {"methods", "evaluation", "explain", "export", "clinical"},
    {"report"},
    {"serve", "client"},
    {"scale"},
    {"benchmark"},
    {"demo"},
    {"cli"},
)
"""From the ground up: a room may use what lies below it, and itself; docs/architecture.md draws the same."""
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
WITHIN = {
    ("progress", "errors"),
    ("files", "errors"),
    ("grey_range", "errors"),
    ("calibration", "metrics"),
}
"""Neighbours on one floor of which the first may use the second; never the second the first."""
LONGEST_FILE, LONGEST_FUNCTION, MOST_ARGUMENTS, DETECTOR = 400, 60, 8, 350
DRAWING = SOURCE / "phantoms"
"""The drawing of phantoms, whose files may be longer."""
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
MODULE = re.compile(r"madclip\.(\w+)(\.\w+)*")


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Rooms that are imported, anywhere in a file: for types alone, or by a module's name in a string as well."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the room"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        yield from ((found[1], node.lineno) for name in names if (found := MODULE.fullmatch(name)))


def test_every_room_has_its_floor():
    rooms = {room_of(path) for path, _ in modules()} - {"__init__"}
    assert rooms == set(FLOOR)


def test_the_page_draws_these_floors():
    drawn = {}
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines()):
        cells = line.split("|")
        if len(cells) == 5 and cells[2].strip().startswith("`"):
            drawn |= dict.fromkeys((room.rstrip("/") for room in re.findall(r"`(\w+/?)`", cells[2])), number)
    assert set(drawn) == set(FLOOR)
    wrong = [(a, b) for a in FLOOR for b in FLOOR if drawn[a] < drawn[b] and FLOOR[a] > FLOOR[b]]
    assert not wrong, "drawn above what they use"


def test_no_arrow_points_up_and_none_goes_in_a_circle():
    wrong = []
    for path, tree in modules():
        room = room_of(path)
        if room == "__init__":
            continue
        for other, line in imported(tree):
            if other not in FLOOR or other == room or FLOOR[other] < FLOOR[room] or (room, other) in WITHIN:
                continue
            wrong.append(f"{path.relative_to(SOURCE)}:{line}: {room} uses {other}")
    assert not wrong, "\n".join(wrong)


def test_neighbours_go_one_way():
    ordered = graphlib.TopologicalSorter()
    for user, used in WITHIN:
        assert FLOOR[user] == FLOOR[used]
        ordered.add(user, used)
    ordered.prepare()  # raises where there is a circle


def test_only_the_command_line_knows_the_terminal():
    wrong = []
    for path, tree in modules():
        for node in ast.walk(tree) if room_of(path) != "cli" else ():
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.partition(".")[0] for name in names} & {"typer", "click", "rich"}:
                wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_files_and_functions_fit_on_what_a_reader_can_hold():
    wrong = []
    for path, tree in modules():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        limit = DETECTOR if path.name == "detector.py" else LONGEST_FILE
        if lines > limit and DRAWING not in path.parents:
            wrong.append(f"{path.relative_to(SOURCE)}: {lines} lines, at most {limit}")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.body[0].lineno + 1 - documented(node)
                if length > LONGEST_FUNCTION:
                    wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno}: {node.name} takes {length} lines")
    assert not wrong, "\n".join(wrong)


def documented(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's docstring."""
    if ast.get_docstring(node) is None:
        return 0
    text = node.body[0]
    return (text.end_lineno or text.lineno) - text.lineno + 1


def test_public_functions_take_at_most_eight_arguments():
    wrong = []
    for path, tree in modules():
        if room_of(path) == "cli":
            continue  # a command's options are its arguments
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = node.args
                names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")])
                if count > MOST_ARGUMENTS:
                    wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno}: {node.name} takes {count}")
    assert not wrong, "\n".join(wrong)


FRAGMENT = re.compile(r"(Of (?!which\b)|Likewise\b|As above\.|Further ones\.|The same\.$)")


def prose(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every line of a docstring, and of a string that stands below a name and says what it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from enumerate(node.value.value.splitlines(), node.lineno)


def test_docstrings_are_sentences():
    wrong = []
    for path, tree in modules():
        for line, text in prose(tree):
            said = text.strip()
            meaning = re.sub(r"^\w+: ", "", said)  # of an argument or attribute
            if FRAGMENT.match(said) or FRAGMENT.match(meaning):
                wrong.append(f"{path.relative_to(SOURCE)}:{line}: {said}")
    assert not wrong, f"{len(wrong)} lines:\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", ["madclip", "madclip.errors", "madclip.files", "madclip.recipe"])
def test_the_package_and_its_ground_floor_need_no_torch(name):
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_answers_without_heavy_libraries():
    code = (
        "import sys, contextlib\nsys.argv = ['madclip', '--help']\nfrom madclip.cli import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "sys.exit(bool({'torch', 'scipy', 'matplotlib', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
