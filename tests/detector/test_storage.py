"""A detector on disk: the same after loading, private, replaced whole or not at all."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

from madclip import MadCLIP, load_backbone, storage
from madclip.data.load import load_dataset
from madclip.errors import CheckpointError, DataError


@pytest.fixture(scope="module")
def fitted(small_data, small_recipe, small_backbone):
    return MadCLIP(small_recipe, backbone=small_backbone, objective="Brain").fit(small_data, shots=4, folds=2)


@pytest.fixture(scope="module")
def images(small_data):
    return [sample.image for sample in load_dataset(small_data).test_pool]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_loaded_detector_says_the_same(fitted, images, tmp_path, small_backbone):
    fitted.save(tmp_path / "d")
    for backbone in (small_backbone, None, "stand-in"):
        loaded = MadCLIP.load(str(tmp_path / "d"), backbone=backbone, device="cpu")
        for before, after in zip(fitted.predict(images), loaded.predict(images), strict=True):
            assert before.score == after.score
            assert np.array_equal(before.anomaly_map, after.anomaly_map)
            assert (before.probability, before.p_value) == (after.probability, after.p_value)
            assert (before.verdict, before.familiar) == (after.verdict, after.familiar)
        assert loaded.recipe == fitted.recipe
        assert loaded.provenance == fitted.provenance
        loaded.save(tmp_path / "again")
        assert files(tmp_path / "again") == files(tmp_path / "d")


def test_a_loaded_detector_can_be_fitted_anew(fitted, small_data, tmp_path, small_backbone):
    fitted.save(tmp_path / "d")
    loaded = MadCLIP.load(tmp_path / "d", backbone=small_backbone)
    loaded.predict(load_dataset(small_data).test_pool[0].image)
    loaded.fit(small_data, shots=4, folds=2).save(tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "d")


def test_same_seed_same_bytes_in_another_process(fitted, small_data, tmp_path):
    """Nothing of the process (hash seed, cache, order of folders) is in the result."""
    fitted.save(tmp_path / "here")
    code = (
        "import sys; from madclip import MadCLIP, Recipe, load_backbone\n"
        "recipe = Recipe(image_size=64, variants=('identity', 'flip-horizontal'), epochs=2, batch_size=8)\n"
        "backbone = load_backbone('stand-in', image_size=64, device='cpu')\n"
        "detector = MadCLIP(recipe, backbone=backbone, objective='Brain')\n"
        "detector.fit(sys.argv[1], shots=4, folds=2).save(sys.argv[2])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", code, str(small_data), str(tmp_path / "there")]
    subprocess.run(command, check=True, env=environment, timeout=120)
    assert files(tmp_path / "here") == files(tmp_path / "there")


def test_no_name_of_a_file_or_a_patient_is_kept(fitted, small_data, tmp_path):
    fitted.save(tmp_path / "d")
    with safe_open(tmp_path / "d" / "head.safetensors", "pt") as file:
        hidden = json.dumps(file.metadata())
    for text in (*((tmp_path / "d" / name).read_text("utf-8") for name in ("detector.json", "README.md")), hidden):
        assert "Maier" not in text
        assert ".png" not in text
        assert str(small_data) not in text
        assert small_data.name not in text
    assert len(fitted.provenance.shots) == 8
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in fitted.provenance.shots)


def test_no_pickle_is_written(fitted, tmp_path, monkeypatch):
    import pickle

    def refuse(*_, **__):
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    fitted.save(tmp_path / "d")
    assert sorted(files(tmp_path / "d")) == ["README.md", "detector.json", "head.safetensors"]


def test_texts_are_utf_8_whatever_the_locale(fitted, small_data, tmp_path):
    code = (
        "import sys; from madclip import MadCLIP, Recipe\n"
        "recipe = Recipe(image_size=64, variants=('identity',), epochs=1)\n"
        "detector = MadCLIP(recipe, backbone='stand-in', objective='\\u00c9chographie', device='cpu')\n"
        "detector.fit(sys.argv[1], shots=2, folds=0).save(sys.argv[2])\n"
        "assert MadCLIP.load(sys.argv[2], device='cpu').objective == '\\u00c9chographie'"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(small_data), str(tmp_path / "d")]
    subprocess.run(command, check=True, env={**os.environ, **ascii_only}, timeout=120)
    assert "Échographie" in (tmp_path / "d" / "README.md").read_text("utf-8")


def test_another_backbone_is_refused(fitted, tmp_path, small_backbone):
    fitted.save(tmp_path / "d")
    other = load_backbone("stand-in", image_size=64, activation="quick_gelu", device="cpu")
    assert other.fingerprint != small_backbone.fingerprint
    with pytest.raises(CheckpointError, match="fitted with backbone stand-in"):
        MadCLIP.load(tmp_path / "d", backbone=other)


def test_the_card_says_what_a_reader_wants_to_know(fitted, tmp_path):
    fitted.save(tmp_path / "d")
    card = (tmp_path / "d" / "README.md").read_text("utf-8")
    for words in ("Brain", "stand-in", "4 normal and 4 abnormal", "not a medical device"):
        assert words in card


@pytest.mark.parametrize("stage", ["save_file", "model_card", "rename"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_detector_is_replaced_whole_or_not_at_all(fitted, tmp_path, monkeypatch, stage, error):
    from pathlib import Path

    target = tmp_path / "d"
    fitted.save(target)
    before = files(target)
    rename = Path.rename

    def fail(*_, **__):
        raise error

    def fail_to_place(self, to):
        if to == target and self.name.startswith(".d.") and not self.name.endswith(".old"):
            raise error
        return rename(self, to)

    with monkeypatch.context() as patch:
        if stage == "rename":
            patch.setattr(Path, "rename", fail_to_place)
        else:
            patch.setattr(storage, stage, fail)
        expected = DataError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected):
            fitted.save(target)
    assert files(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_half_precision_copy_of_the_weights_is_read(fitted, tmp_path, small_backbone, images):
    from safetensors.torch import load_file, save_file

    fitted.save(tmp_path / "d")
    path = tmp_path / "d" / "head.safetensors"
    save_file({name: value.half() for name, value in load_file(path).items()}, path)
    loaded = MadCLIP.load(tmp_path / "d", backbone=small_backbone)
    assert loaded.predict(images[0]).score == pytest.approx(fitted.predict(images[0]).score, abs=1e-2)
