"""What `madclip licences` lists, against metadata and files that are read here by themselves."""

import json
from importlib import metadata

import pytest
from typer.testing import CliRunner

from madclip.cli import licences as module
from madclip.cli.app import app


def listed(*arguments):
    done = CliRunner().invoke(app, ["licences", "--json", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_packages_weights_and_the_page_have_their_licences():
    found = listed()
    assert set(found) == {"python", "weights", "page"}
    packages = {row["name"]: row for row in found["python"]}
    for name in ("torch", "numpy", "fastapi", "pillow", "highdicom", "typer"):
        assert packages[name]["version"] == metadata.version(name)
        assert packages[name]["licence"] != module.UNKNOWN
    assert packages["numpy"]["licence"].startswith("BSD-3-Clause")
    texts = [open(file, encoding="utf-8").read() for file in packages["fastapi"]["files"]]  # noqa: SIM115, PTH123
    assert any("Permission is hereby granted" in text for text in texts)
    assert {"tiny", "lite0", "vocabulary of OpenAI's CLIP"} <= {row["name"] for row in found["weights"]}
    assert {("svelte", "MIT"), ("@niivue/niivue", "BSD-2-Clause")} <= {(r["name"], r["licence"]) for r in found["page"]}


@pytest.mark.parametrize(
    ("metadata_", "expected"),
    [
        ("License-Expression: MIT\nLicense: other", "MIT"),
        (
            "License: old words\nClassifier: License :: OSI Approved :: Apache Software License",
            "Apache Software License",
        ),
        ("Classifier: License :: OSI Approved\nLicense: BSD\n of three clauses", "BSD"),
        ("License: UNKNOWN", module.UNKNOWN),
        ("Summary: nothing said", module.UNKNOWN),
    ],
)
def test_a_licence_is_read_where_it_is_stated(tmp_path, metadata_, expected):
    folder = tmp_path / "one-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: one\nVersion: 1\n{metadata_}\n")
    (distribution,) = metadata.distributions(path=[str(tmp_path)])
    assert module._stated(distribution) == expected


def test_packages_of_debian_are_listed(tmp_path, monkeypatch):
    status = tmp_path / "status"
    status.write_text(
        "Package: zlib1g\nStatus: install ok installed\nVersion: 1.2\nDescription: x\n Version: none\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 2\n\n"
        "Package: odd\nStatus: install ok installed\nVersion: 3\n"
    )
    (tmp_path / "zlib1g").mkdir()
    (tmp_path / "zlib1g" / "copyright").write_text("Files: *\nLicense: Zlib\n text\n\nFiles: b\nLicense: GPL-2+\n")
    monkeypatch.setattr(module, "DPKG", status)
    monkeypatch.setattr(module, "COPYRIGHTS", tmp_path)
    assert listed("--system")["system"] == [
        {"name": "zlib1g", "version": "1.2", "licence": "Zlib, GPL-2+"},
        {"name": "odd", "version": "3", "licence": f"see {tmp_path}/odd/copyright"},
    ]
