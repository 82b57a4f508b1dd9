"""What deploys the server: linted, of the same words as the command, and run as far as it can be without an engine."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import container
import pytest
import yaml

from madclip.backbones import lite

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
SAID = list(container.instructions(DOCKERFILE))


def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["madclip"]


def unit():
    """Settings of the unit; what is given twice is a list."""
    found = {}
    for line in (DEPLOY / "madclip.service").read_text().splitlines():
        if line[:1] not in ("#", "[", ""):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def program(name):
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


def test_the_dockerfile_has_no_lint():
    done = subprocess.run([program("hadolint"), DOCKERFILE], check=False, capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0


def test_the_compose_file_is_one():
    specification = pytest.importorskip("compose_spec")
    text = (DEPLOY / "compose.yaml").read_text()
    assert specification.PyCompose.from_yaml(text).service_names() == ["madclip"]
    with pytest.raises(ValueError, match="read_only"):
        specification.PyCompose.from_yaml(text.replace("read_only: true", "read_only: maybe"))


def test_the_unit_is_one_and_leaves_little_open(tmp_path):
    analyze = program("systemd-analyze")
    text = (DEPLOY / "madclip.service").read_text().replace("/opt/madclip/bin/madclip", "/bin/true")
    file = tmp_path / "madclip.service"
    file.write_text(text)
    done = subprocess.run([analyze, "verify", file], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # From 0, safe, to 10; a service that says nothing has 9.6.
    command = [analyze, "security", "--offline=true", "--threshold=15", file]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:]


def test_the_command_knows_what_it_is_started_with():
    import typer

    from madclip.cli.app import app

    image = json.loads(dict(SAID)["CMD"])
    started = [image, compose()["command"], shlex.split(unit()["ExecStart"][0])[1:]]
    for word, *arguments in started:
        made = typer.main.get_command(app).commands[word]
        given = made.make_context(word, list(arguments)).params  # an option that is unknown is an error
        assert given["token_file"] is not None
        assert given["project"].is_absolute()
    assert image == compose()["command"]


def test_the_files_name_the_same_things():
    image, service = dict(SAID), compose()
    assert service["volumes"] == [f"data:{image['VOLUME']}"]
    assert service["ports"] == [f"127.0.0.1:{image['EXPOSE']}:{image['EXPOSE']}"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DOCKERFILE)
    token = image["CMD"].rpartition('"--token-file", "')[2].partition('"')[0]
    assert token == f"/run/secrets/{service['secrets'][0]}"
    for proxy in ("nginx.conf", "Caddyfile"):
        assert f"127.0.0.1:{image['EXPOSE']}" in (DEPLOY / proxy).read_text()
    state = unit()["StateDirectory"][0]
    assert f"--project /var/lib/{state}/" in unit()["ExecStart"][0]


def test_the_image_holds_the_versions_of_the_project():
    runs = " ".join(rest for word, rest in SAID if word == "RUN")
    torch = re.search(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert f"/whl/cpu {torch} " in f"{runs} "
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.search(r"/source\[([\w,]+)\]", runs)[1].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    images = {rest.partition(" AS ")[0] for word, rest in SAID if word == "FROM"}
    assert len(images) == 1, "one Python in both stages"
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", images.pop())


@pytest.mark.slow
def test_the_wheel_is_small_and_asks_for_the_weights_that_are_read(tmp_path):
    wheels = pytest.importorskip("hatchling.builders.wheel")
    (built,) = wheels.WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    assert Path(built).stat().st_size < 14e6
    with zipfile.ZipFile(built) as archive:
        (said,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    weights = lite.DISTRIBUTION.format("lite0")
    assert f"Requires-Dist: {weights}\n" in said
    assert weights in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.slow
def test_the_image_is_built_and_serves_without_a_network_on_a_read_only_root():
    pytest.importorskip("hatchling")
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root, and unshare of util-linux")
    apart = ["unshare", "--mount", "--net", "--pid", "--fork"]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody make namespaces")
    command = [*apart, sys.executable, container.__file__, DOCKERFILE, ROOT]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert seen["before"] != 0, "the health check fails where nobody serves"
    assert seen["outside"] != 0, "nothing but the volume can be written"
    assert seen["without"] == 401
    assert seen["page"]
    assert 0 < seen["score"] < 1
    assert len(seen["processes"]) >= 3
    assert {tuple(one) for one in seen["processes"]} == {("1", "", "")}, "no new privileges, and none that there are"
    assert seen["kept"] == ["project"]
    assert {owner for owner, _ in seen["files"]} == {int(seen["user"][0])}
    assert seen["ended"] in (0, -15)
