"""A real server on loopback, in a process of its own with its workers, and a client of it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from madclip.client import Client

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")


QUICK = {
    "folds": 2,
    "changes": {"image_size": 64, "epochs": 2, "batch_size": 8, "variants": ["identity", "flip-horizontal"]},
}
"""Parameters of a fit that takes a second or two."""


class Server:
    """One project that is served; it may be killed and started again."""

    def __init__(self, project, *arguments, **environment):
        self.project, self.arguments, self.environment = Path(project), arguments, environment
        self.process, self.lines, self.port = None, [], 0

    def start(self, *arguments):
        given = ["serve", *arguments, "--project", self.project, "--port", self.port, "--backbone", "stand-in"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from madclip.cli import main; main()", *map(str, (*given, *self.arguments))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment},
        )
        ready = threading.Event()
        threading.Thread(target=self._read, args=(self.process, ready), daemon=True).start()
        assert ready.wait(60), self.lines
        assert self.port, self.lines
        return self

    def _read(self, process, ready):
        for line in process.stderr:
            self.lines.append(line)
            if found := re.search(r"open http://.*:(\d+)/", line):
                self.port = int(found[1])
                ready.set()
        ready.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options):
        return Client(self.url, timeout=60, **options)

    def children(self):
        """Process numbers of the server's workers by the module that they run."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = re.search(r"PPid:\s+(\d+)", (entry / "status").read_text())[1]
                command = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if int(parent) == self.process.pid and "-m" in command:
                found[int(entry.name)] = command[command.index("-m") + 1]
        return found

    def kill(self):
        """End it as a loss of power would."""
        self.process.kill()
        self.process.wait(30)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()


@pytest.fixture
def serve(tmp_path):
    """Starts servers, which end with the test."""
    running = []

    def begin(*arguments, project=None, options=(), **environment):
        server = Server(project or tmp_path / "project", *options, **environment)
        running.append(server)
        return server.start(*arguments)

    yield begin
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server for a whole file of tests, without images."""
    folder = tmp_path_factory.mktemp("served")
    server = Server(folder / "project")
    (folder / "images").mkdir()
    draw(folder / "images", 1)
    server.start(folder / "images")
    yield server
    server.stop()


def draw(folder, count, *, size=(64, 64), seed=0, prefix="image"):
    """Grey noise; every other image has a bright disc, and so is abnormal. Gives which are."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    abnormal = {}
    for number in range(count):
        pixels = generator.normal(100, 12, size)
        at = generator.integers(18, 44, 2)
        if number % 2:
            pixels[(rows - at[0]) ** 2 + (columns - at[1]) ** 2 < 90] += 90
        name = f"{prefix}{number:03d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
        abnormal[name] = bool(number % 2)
    return abnormal


@pytest.fixture(scope="session")
def draw_images():
    return draw


@pytest.fixture(scope="session")
def quick():
    return QUICK


@pytest.fixture(scope="session")
def eventually():
    """Waits until something holds."""

    def wait(holds, seconds=30):
        end = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < end, "it never came to hold"
            time.sleep(0.05)
        return found

    return wait
