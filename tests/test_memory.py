import platform
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = """
import resource, torch
from madclip.memory import kept_memory

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(size << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(64)
print("outside", faults(64))
with kept_memory():
    for _ in range(12):  # until freed neighbours have joined into blocks that an aligned one fits in
        faults(64)
    print("inside", faults(64))
    with kept_memory():
        pass
    print("nested", faults(64))
print("after", faults(64))
"""


def huge_pages():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[always]" in setting.read_text()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or huge_pages(), reason="no glibc, or pages too large to count")
def test_pages_are_taken_once_inside_and_given_back_after():
    found = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True).stdout
    count = {name: int(value) for name, value in map(str.split, found.splitlines())}
    assert count["outside"] > 1000
    assert count["inside"] < count["outside"] / 4
    assert count["nested"] < count["outside"] / 4
    assert count["after"] > count["outside"] / 4


ELSEWHERE = """
import ctypes, platform
platform.libc_ver = lambda: ("", "")
def refuse(name):
    raise OSError("there is no such library here")
ctypes.CDLL = refuse
from madclip.memory import keep_small_blocks, kept_memory
with kept_memory():
    keep_small_blocks()
"""


def test_where_there_is_no_glibc_nothing_is_done():
    subprocess.run([sys.executable, "-c", ELSEWHERE], check=True)
