"""The built files: those of the sources, small, and nothing inline."""

import gzip
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "src" / "madclip" / "serve" / "pages"


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_built_files_are_those_of_the_sources(tmp_path):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    vite = ROOT / "pages" / "node_modules" / "vite" / "bin" / "vite.js"
    if not vite.exists():
        pytest.skip("the packages of the pages are not installed: npm ci in pages/")
    command = ["node", vite, "build", "--outDir", tmp_path, "--logLevel", "error"]
    subprocess.run(command, cwd=ROOT / "pages", check=True, timeout=120)
    built, committed = files(tmp_path), files(BUILT)
    assert set(built) == set(committed), "run `make pages` and commit what it writes"
    assert [name for name in built if built[name] != committed[name]] == []


def test_the_first_page_is_small_and_holds_nothing_inline():
    page = (BUILT / "index.html").read_text(encoding="utf-8")
    assert re.search(r"<style|style=|\son\w+=|<script(?![^>]*\ssrc=)", page) is None, "the content security policy"
    linked = re.findall(r'(?:src|href)="\./([^"]+)"', page)
    size = len(gzip.compress(page.encode())) + sum(len(gzip.compress((BUILT / name).read_bytes())) for name in linked)
    assert len(linked) >= 3
    assert size < 300_000
    assert all(not name.startswith(("http:", "https:", "//")) for name in re.findall(r'(?:src|href)="([^"]+)"', page))


def test_licences_of_what_is_bundled_are_listed():
    listed = (BUILT / "LICENSES.md").read_text(encoding="utf-8")
    for package in ("svelte", "@niivue/niivue", "gl-matrix", "fflate", "nifti-reader-js"):
        assert re.search(rf"^## {re.escape(package)}\b", listed, re.MULTILINE), package
