"""Mutated scanner files are read or refused in one line: no crash, no hang, no memory without end."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.soak
def test_mutated_scanner_files(tmp_path, soak):
    count = soak(5000)
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("mutants.py"), tmp_path, "0", str(count)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60 + count,
    )
    assert done.returncode == 0, f"seed {done.stderr.strip()[-3000:]}"
    read, refused = map(int, done.stdout.split())
    assert read + refused == count
    assert read > count / 20
    assert refused > count / 4
