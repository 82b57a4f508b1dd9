"""Writes the tables of docs/ that follow from the code, each between its markers.

    python tools/make_docs.py           # writes them
    python tools/make_docs.py --check   # says which are out of date; exit code 1 if any is

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. What is between is replaced, nothing else is touched.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w: -]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def backbones() -> str:
    """The catalogue."""
    from madclip.backbones.catalogue import catalogue

    use = {True: "yes", False: "no", None: "not known"}
    return table(
        ["id", "vision tower", "licence of the weights", "commercial use", "gated", "read and compared", "note"],
        [
            [
                f"`{e.id}`",
                f"{e.depth} blocks of {e.width}, patch {e.patch_size} at {e.image_size} px, "
                f"{f'embedding {e.embed_dim}' if e.embed_dim else 'no texts'}"
                if e.embed_dim or e.hub
                else f"{e.depth} stages of up to {e.width} channels at {e.image_size} px, no texts",
                e.licence,
                use[e.commercial],
                use[e.gated],
                e.checked,
                e.note,
            ]
            for e in catalogue()
        ],
    )


def backbone_files() -> str:
    """Where weights come from, and which single file will do."""
    from madclip.backbones.catalogue import catalogue

    return table(
        ["id", "hub name", "single file", "its SHA-256"],
        [
            [f"`{e.id}`", f"`{e.hub}`", f"`{e.file}`" if e.file else "", f"`{e.sha256}`" if e.sha256 else ""]
            for e in catalogue()
            if e.hub
        ],
    )


def recipe_fields() -> str:
    """Every field of Recipe, from what stands beside it."""
    from dataclasses import fields

    from madclip.recipe import Recipe

    hints = get_type_hints(Recipe)
    return table(
        ["field", "values", "`madclip`", "meaning"],
        [
            [
                f"`{one.name}`",
                _values(hints[one.name]) + _range(one.metadata),
                _value(one.default),
                one.metadata["meaning"],
            ]
            for one in fields(Recipe)
        ],
    )


def recipe_presets() -> str:
    """The fields in which the presets differ."""
    from madclip.recipe import PRESETS, Recipe

    names = ("paper", "released", "madclip", "fused")
    fields = [name for name in get_type_hints(Recipe) if name != "name"]
    rows = [[_value(getattr(PRESETS[preset], field)) for preset in names] for field in fields]
    return table(
        ["field", *(f"`{name}`" for name in names)],
        [[f"`{field}`", *row] for field, row in zip(fields, rows, strict=True) if len(set(row)) > 1],
    )


def _range(known: Mapping[str, Any]) -> str:
    return "" if known["low"] is None else f" from {known['low']:g} to {known['high']:g}"


def _values(hint: Any) -> str:
    """What a field takes, as a user types it."""
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        return f"list: {_values(inner[0])}" if inner[-1] is ... else ", ".join(_values(part) for part in inner)
    if get_args(hint):
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    return {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}[hint]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"{len(value)} of them" if len(value) > 3 else f"`{','.join(map(str, value))}`"
    return f"`{value}`"


def check_kinds() -> str:
    """What `madclip data check` looks for."""
    from madclip.data.check import KINDS

    return table(["kind", "severity", "what"], [[f"`{k}`", severity, what] for k, (severity, what) in KINDS.items()])


def options(command: str) -> str:
    """Arguments and options of a command, with the values that an option takes beside its name."""
    node = find_command(command.split())
    hints = get_type_hints(node.callback)
    rows = []
    for parameter in node.params:
        if parameter.name in ("help", "as_json"):
            continue
        if parameter.param_type_name == "argument":
            needed = "required" if parameter.required else "optional"
            rows.append([f"`{parameter.name.upper()}`", needed, parameter.help or ""])
            continue
        values = parameter.metavar or "|".join(_choices(hints[parameter.name]))
        names = [*parameter.opts, *parameter.secondary_opts]
        spelled = ", ".join(f"`{name} {values}`" if values and name is names[0] else f"`{name}`" for name in names)
        rows.append([spelled, _default(parameter), parameter.help or ""])
    return table(["argument or option", "default", "what"], rows) if rows else "Only `--json`.\n"


def _choices(hint: Any) -> list[str]:
    """The words of a Literal, also where None may stand in its place."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for part in get_args(hint) for choice in _choices(part)]


def find_command(words: Sequence[str]) -> Any:
    """The click command that the words name."""
    import typer.main

    from madclip.cli import app

    node: Any = typer.main.get_command(app)
    for word in words:
        node = node.commands[word]
    return node


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.is_flag:
        return f"`{parameter.opts[0]}`" if parameter.default else ""
    return f"`{parameter.default}`" if isinstance(parameter.default, (str, int, float, Path)) else ""


TABLES: dict[str, Callable[[], str]] = {
    "backbones": backbones,
    "backbone-files": backbone_files,
    "recipe-fields": recipe_fields,
    "recipe-presets": recipe_presets,
    "check-kinds": check_kinds,
}


def filled(text: str) -> str:
    """A page with its tables made anew.

    Raises:
        KeyError: No table and no command has that name.
    """

    def make(match: re.Match[str]) -> str:
        kind, _, rest = match["name"].partition(": ")
        return match[1] + (options(rest) if kind == "options" else TABLES[kind]()) + match[3]

    return BLOCK.sub(make, text)


def main() -> int:
    """Write the tables, or with --check only say which pages would change."""
    check = "--check" in sys.argv[1:]
    stale = [page for page in sorted(DOCS.rglob("*.md")) if filled(page.read_text("utf-8")) != page.read_text("utf-8")]
    for page in stale:
        if not check:
            page.write_text(filled(page.read_text("utf-8")), "utf-8")
        print(
            f"{page.relative_to(DOCS.parent)}: {'out of date, run python tools/make_docs.py' if check else 'written'}"
        )
    return int(check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
