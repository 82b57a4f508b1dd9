"""Executors: results in the order of the items whatever the number of workers, and nobody is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from madclip.errors import DataError, RecipeError
from madclip.scale.executor import AHEAD, LocalProcesses, run_alone


class Slowly:
    """The first items take longest; remembers in which process it was called, and how often."""

    def __init__(self):
        self.calls = 0

    def __call__(self, item):
        self.calls += 1
        time.sleep(0.3 / (1 + item))
        return item, item**2, os.getpid(), self.calls, torch.get_num_threads()


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers):
    before = torch.get_num_threads()
    found = list(LocalProcesses(workers, threads=1).run(Slowly(), range(6)))
    assert [row[:2] for row in found] == [(item, item**2) for item in range(6)]
    assert {row[4] for row in found} == {1}
    processes = {row[2] for row in found}
    # What the work keeps stays in its process.
    for process in processes:
        assert [row[3] for row in found if row[2] == process] == sorted(row[3] for row in found if row[2] == process)
    assert sum(max(row[3] for row in found if row[2] == process) for process in processes) == 6
    assert (processes == {os.getpid()}) == (workers == 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("workers", [1, 2])
def test_items_are_asked_for_as_they_are_worked_on(workers):
    asked = []
    results = LocalProcesses(workers).run(abs, (asked.append(item) or item for item in range(1000)))
    assert next(results) == 0
    assert len(asked) <= AHEAD * workers + 1
    results.close()


def end(item):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(item):
    raise DataError(f"item {item}")


def test_a_worker_that_is_killed_is_said():
    with pytest.raises(DataError, match="fewer workers"):
        list(LocalProcesses(2).run(end, [1, 2, 3]))
    with pytest.raises(DataError, match="ended from outside"):
        run_alone(end, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_work_is_the_callers(workers):
    with pytest.raises(DataError, match="item 1"):
        list(LocalProcesses(workers).run(fail, [1, 2]))


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
def test_at_least_one(numbers):
    with pytest.raises(RecipeError, match="at least 1"):
        LocalProcesses(*numbers)


def speak(what):
    print(what)
    return os.getpid(), what


def test_alone_in_another_process_and_silent(capfd):
    process, said = run_alone(speak, "hello")
    assert process != os.getpid()
    assert said == "hello"
    out, err = capfd.readouterr()
    assert "hello" not in out
    assert "hello" in err


def test_workers_end_with_their_parent(tmp_path):
    """A parent that is killed leaves no worker behind, not even one that is busy."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "from madclip.scale.executor import LocalProcesses\n"
        "def work(folder):\n"
        "    open(f'{folder}/{os.getpid()}', 'w').close()\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    list(LocalProcesses(2).run(work, [sys.argv[1]] * 2))\n"
    )
    pids = tmp_path / "pids"
    pids.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(pids)], start_new_session=True)
    try:
        while len(list(pids.iterdir())) < 2:
            assert parent.poll() is None
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    workers = [int(path.name) for path in pids.iterdir()]
    for _ in range(600):
        if not any(alive(worker) for worker in workers):
            return
        time.sleep(0.05)
    pytest.fail("workers outlived their parent")


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
