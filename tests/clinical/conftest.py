"""Tools of the field that tests ask for a second opinion, and a real archive on the loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

REQUIRED = os.environ.get("MADCLIP_REQUIRE", "").split(",")
"""Tools without which a test fails and is not skipped: `.ci/run` names those that it has installed."""


def tool(name, *places):
    """The path of a program, also of one that pip put beside Python; without it the test is skipped.

    It fails where the program is required.
    """
    known = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=known) or next((place for place in places if Path(place).is_file()), None)
    if found is None:
        (pytest.fail if name.lower() in REQUIRED else pytest.skip)(f"{name} is not installed")
    return found


@pytest.fixture
def dciodvfy():
    """Lets a DICOM object be checked by dciodvfy: the errors that it finds."""
    program = tool("dciodvfy")

    def errors(path):
        said = subprocess.run([program, path], capture_output=True, text=True, check=False, timeout=120)
        return [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]

    return errors


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def orthanc(archive_at):
    """The address of a real archive's DICOMweb."""
    return f"http://127.0.0.1:{archive_at[0]}/dicom-web"


@pytest.fixture(scope="session")
def archive_at(tmp_path_factory):
    """The ports of a real archive: for REST and DICOMweb, and for DIMSE, where its title is ORTHANC."""
    program = tool("Orthanc", "/usr/sbin/Orthanc")
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    if not plugin.is_file():
        (pytest.fail if "orthanc" in REQUIRED else pytest.skip)("Orthanc has no DICOMweb plug-in")
    folder = tmp_path_factory.mktemp("orthanc")
    port, dicom_port = free_port(), free_port()
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "Plugins": [str(plugin)],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "HttpPort": port,
        "DicomPort": dicom_port,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/system", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield port, dicom_port
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def madclip_run(monkeypatch):
    """Runs the command line in this process; gives the exit code."""
    from madclip import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["madclip", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0

    return run
