"""The documentation says what the program does: tables are up to date, commands parse, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

import make_docs  # noqa: E402

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:madclip|make) [^`\n]+)`")
PICTURE = ROOT / "docs/demo.png"
BUNDLED = ROOT / "src/madclip/backbones/tiny"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, language):
    return [body for kind, body in FENCE.findall(page.read_text("utf-8")) if kind == language]


def commands():
    """Every command line shown, with its page, and whether it is whole: inline ones may name a command only."""
    shown = []
    for page in PAGES:
        lines = [line for block in blocks(page, "console") for line in block.splitlines() if line]
        inline = INLINE.findall(FENCE.sub("", page.read_text("utf-8")))
        shown += [(name(page), line, True) for line in lines] + [(name(page), line, False) for line in inline]
    return shown


def split_command(words):
    """The click command, its name and the words after it."""
    node, path = make_docs.find_command([]), []
    while words and words[0] in getattr(node, "commands", {}):
        path.append(words[0])
        node, words = node.commands[words[0]], words[1:]
    return node, path, words


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_tables_are_up_to_date(page):
    text = page.read_text("utf-8")
    assert make_docs.filled(text) == text, "run python tools/make_docs.py"


def test_tables_are_replaced_and_nothing_else():
    page = "before\n<!-- table: check-kinds -->\nold\n<!-- end -->\nafter\n"
    made = make_docs.filled(page)
    assert made.startswith("before\n<!-- table: check-kinds -->\n| kind |")
    assert made.endswith("<!-- end -->\nafter\n")
    assert "old" not in made.splitlines()


@pytest.mark.parametrize(("page", "line", "whole"), commands(), ids=lambda value: str(value))
def test_commands_parse(page, line, whole):
    program, *words = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert words
        assert set(words) <= set(targets)
        return
    if program != "madclip":
        assert program in ("pip", "python")
        return
    node, path, rest = split_command(words)
    if not whole:
        rest = [word for word in rest if word not in ("COMMAND", "...")]
        known = {option for parameter in node.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert path or words[0] == "COMMAND" or words[0] in known, f"no command {words[0]}"
        unknown = {word for word in rest if word.startswith("--")} - known - {"--help"}
        assert not unknown
        return
    assert path, f"no command {words[0]}"
    node.make_context(" ".join(path), list(rest))


def test_an_option_that_is_not_there_would_be_noticed():
    node, path, rest = split_command(shlex.split("fit DATA --shotz 16 --out DETECTOR"))
    with pytest.raises(Exception, match="shotz"):
        node.make_context(" ".join(path), rest)


def test_changes_of_recipes_are_real():
    from madclip.recipe import Recipe, parse_field

    changes = [change for page in PAGES for change in re.findall(r"--set ([a-z_]+=[\w.,+-]+)", page.read_text("utf-8"))]
    assert len(changes) >= 6
    for change in changes:
        Recipe().replace(**dict([parse_field(change)]))


def test_every_command_has_a_section():
    from madclip.cli.bench import EXPERIMENTS

    root = make_docs.find_command([])
    every = {
        " ".join([*outer, inner])
        for outer, group in [((), root), *(((n,), c) for n, c in root.commands.items() if hasattr(c, "commands"))]
        for inner, command in group.commands.items()
        if not hasattr(command, "commands")
    }
    # The experiments take the same options and share a section; `benchmark` is an older name.
    every = {"bench" if name.removeprefix("bench ") in EXPERIMENTS else name for name in every} - {"benchmark speed"}
    shown = set(re.findall(r"^## (.+)$", (ROOT / "docs/command-line.md").read_text("utf-8"), re.MULTILINE))
    assert shown == every


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        file = page if not target else (page.parent / target).resolve()
        if file == PICTURE and not BUNDLED.is_dir():
            continue  # the demo makes it, with the bundled backbone
        assert file.exists(), f"{link} does not exist"
        if anchor:
            assert anchor in anchors(file), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_compiles_and_its_names_can_be_imported(page):
    for block in blocks(page, "python"):
        compile(block, name(page), "exec")
        for line in block.splitlines():
            if line.startswith(("from madclip", "import madclip")):
                exec(line, {})


def layouts():
    text = (ROOT / "docs/data.md").read_text("utf-8")
    return re.findall(r"^### `(\w+)`\n.*?```(text|csv)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def grow(tree, root):
    """Makes the files of a tree that is drawn with two blanks for each level."""
    path = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        path[depth:] = [line.strip()]
        if not line.endswith("/"):
            file = root.joinpath(*path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def test_layouts_are_those_that_are_read(tmp_path):
    from madclip.data import load_dataset

    found = layouts()
    assert [kind for kind, _, _ in found] == ["bmad", "folders", "anomalib", "manifest"]
    for kind, language, body in found:
        root = tmp_path / kind / "DATA"
        if language == "csv":
            rows = [line.split(",") for line in body.splitlines()[1:]]
            grow("\n".join(cell for row in rows for cell in (row[0], row[2]) if cell), root)
            (root / "manifest.csv").write_text(body)
        else:
            grow(body, root.parent)
        dataset = load_dataset(root)
        assert dataset.layout == kind
        assert dataset.normal
        assert all(sample.mask for sample in dataset.abnormal)
        assert not dataset.unused


def test_the_layout_in_the_readme_is_read(tmp_path):
    from madclip.data import load_dataset

    (tree,) = blocks(ROOT / "README.md", "text")
    grow(tree, tmp_path)
    dataset = load_dataset(tmp_path / "DATA")
    assert (len(dataset.split("valid")), len(dataset.split("test")), dataset.has_masks) == (2, 2, True)


def test_pages_name_no_folder_of_the_machine_that_wrote_them():
    for page in PAGES:
        assert not re.search(r"/(work|root|home|tmp)/", page.read_text("utf-8")), page
