"""The command line as a user sees it: exit code, standard output, standard error."""

import os
import signal
import subprocess
import sys
from typing import NamedTuple

import pytest

from madclip import cli

SMALL = ["--backbone", "stand-in", "--objective", "Brain", "--device", "cpu"]
for change in ("image_size=64", "epochs=1", "batch_size=8", "variants=identity,flip-horizontal"):
    SMALL += ["--set", change]


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def one_line(self, *words):
        """A single clear line on standard error, exit code 2, and nothing else."""
        assert self.code == 2, self
        assert self.out == "", self
        assert self.err.startswith("error: "), self
        assert self.err.count("\n") == 1, self
        assert "Traceback" not in self.err, self
        for word in words:
            assert str(word) in self.err, self


@pytest.fixture
def small():
    """Options of a fit that takes a second."""
    return list(SMALL)


@pytest.fixture
def madclip(capsys, monkeypatch):
    """Run the command line in this process."""

    # A slow machine writes no lines of progress that a test does not expect.
    monkeypatch.setattr("madclip.cli.console.EVERY", float("inf"))

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["madclip", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Result(end.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def start():
    """Start Python in a process of its own; it is killed when the test ends."""
    # A shell starts what is in its background with SIGINT ignored, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    running = []

    def begin(*arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()
