"""Shared by all tests: no test writes into the user's cache; golden values; a small data set and its detector."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores; read when torch is imported

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from madclip import MadCLIP, Recipe, load_backbone

# What takes long on a busy machine is not wrong.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MADCLIP_CACHE", str(tmp_path / "cache" / "tokens"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def soak():
    """How many of so many: all with MADCLIP_SOAK=full, else a twentieth, at least one."""
    return lambda count: count if os.environ.get("MADCLIP_SOAK") == "full" else max(1, count // 20)


@pytest.fixture(scope="session")
def golden():
    with np.load(GOLDEN / "released_public.npz") as arrays:
        return {
            name: torch.from_numpy(arrays[name]) if arrays[name].dtype.kind in "fiu" else arrays[name]
            for name in arrays
        }


def write_images(root, counts, *, size=(64, 64), masks=True, seed=0):
    """A small data set in the BMAD layout: grey noise, and a bright disc with its mask where something is wrong.

    Files are called <patient>_<slice>.png, two slices of a patient. counts: (normal, abnormal) of each split.
    """
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for split, (normal, abnormal) in counts.items():
        for name, count in (("good", normal), ("Ungood", abnormal)):
            for i in range(count):
                pixels = generator.normal(100, 12, size)
                disc = (rows - generator.integers(18, 44)) ** 2 + (columns - generator.integers(18, 44)) ** 2 < 90
                pixels[disc] += 90 * (name == "Ungood")
                file = f"Maier{split}{name}{i // 2:02d}_{i % 2}.png"
                pictures = {"img": pixels.clip(0, 255)}
                if masks and name == "Ungood":
                    pictures["anomaly_mask"] = disc * 255
                for folder, values in pictures.items():
                    path = root / split / name / folder / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(values.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="session")
def make_images():
    return write_images


@pytest.fixture(scope="session")
def small_recipe():
    return Recipe(image_size=64, variants=("identity", "flip-horizontal"), epochs=2, batch_size=8)


@pytest.fixture(scope="session")
def small_backbone():
    return load_backbone("stand-in", image_size=64, device="cpu")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """Read it; a test that changes files makes its own with make_images."""
    return write_images(tmp_path_factory.mktemp("small"), {"valid": (4, 4), "test": (6, 6)})


@pytest.fixture(scope="session")
def small_detector(small_data, small_recipe, small_backbone, tmp_path_factory):
    """A fitted detector's folder; likewise."""
    folder = tmp_path_factory.mktemp("detectors") / "small"
    detector = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain")
    detector.fit(small_data, shots=4, folds=2).save(folder)
    return folder
