"""Shared by all tests: no test writes into the user's cache, and the golden values of the released code."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"
sys.path[:0] = [str(GOLDEN), *(str(GOLDEN.parent / room) for room in ("head", "detector"))]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MADCLIP_CACHE", str(tmp_path / "cache" / "tokens"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def golden():
    with np.load(GOLDEN / "released_public.npz") as arrays:
        return {
            name: torch.from_numpy(arrays[name]) if arrays[name].dtype.kind in "fiu" else arrays[name]
            for name in arrays
        }
