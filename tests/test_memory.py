import resource
import subprocess
import sys

import pytest

from madclip import memory

COUNT = """
import resource, torch
from madclip.memory import kept_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(16 * 2**20).fill_(1)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
outside = faults()
with kept_memory():
    for _ in range(4):  # until freed neighbours have joined into blocks that an aligned one fits in
        faults()
    inside = faults()
print(outside, inside, faults())
"""


@pytest.mark.skipif(memory._glibc() is None, reason="no glibc here")
def test_pages_are_taken_once_inside_and_given_back_after():
    found = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True).stdout
    outside, inside, after = map(int, found.split())
    page = resource.getpagesize()
    assert outside * page >= 4 * 2**20
    assert inside < outside / 100
    assert after >= outside / 4


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with memory.kept_memory():
        pass
