"""Predicting with an export: the same predictions, and never with that of another detector."""

import json
import shutil

import numpy as np
import pytest
import torch

from madclip import MadCLIP
from madclip.data.load import load_dataset
from madclip.errors import CheckpointError
from madclip.evaluation.protocol import evaluate
from madclip.export.engines import FACTS, export_engine
from madclip.export.use import choose_engine, use_engine


@pytest.fixture(scope="module")
def folder(small_detector, small_data, tmp_path_factory):
    """A detector's folder with its exports beside it."""
    folder = tmp_path_factory.mktemp("exported") / "detector"
    shutil.copytree(small_detector, folder)
    detector = MadCLIP.load(folder, device="cpu")
    for engine in ("openvino", "onnx"):
        export_engine(detector, small_data, folder / "engines" / f"{engine}-fp32", engine=engine)
    return folder


@pytest.fixture
def detector(folder):
    return MadCLIP.load(folder, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_the_same_predictions(engine, folder, detector, small_data):
    images = [sample.image for sample in load_dataset(small_data).test_pool]
    expected = detector.predict(images)
    path, passed = choose_engine(detector, folder, engine)
    assert passed == []
    assert use_engine(detector, path)["format"] == engine
    for one, other in zip(expected, detector.predict(images), strict=True):
        assert other.score == pytest.approx(one.score, abs=1e-4)
        np.testing.assert_allclose(other.anomaly_map, one.anomaly_map, atol=1e-4)
        assert (other.verdict, other.familiar) == (one.verdict, one.familiar)
        assert other.p_value == one.p_value
    assert evaluate(detector, small_data).metrics["image_auroc"].value is not None


@pytest.mark.slow
def test_auto_takes_the_fastest_that_fits(folder, detector, tmp_path):
    assert choose_engine(detector, folder, "auto")[0] == folder / "engines" / "openvino-fp32"
    assert choose_engine(detector, folder, "torch") == (None, [])
    assert choose_engine(detector, tmp_path, "auto") == (None, [])
    own = folder / "engines" / "onnx-fp32"
    assert choose_engine(detector, tmp_path, str(own))[0] == own


@pytest.mark.slow
def test_an_export_of_what_the_detector_was_before_is_not_used(folder, detector):
    with torch.no_grad():
        detector.state.head.adapters.shared.add_(1e-3)
    found, passed = choose_engine(detector, folder, "auto")
    assert found is None
    assert len(passed) == 2
    assert "export again" in passed[0]
    with pytest.raises(CheckpointError, match="before it changed"):
        choose_engine(detector, folder, "onnx")


def test_what_is_not_there(small_detector, tmp_path):
    detector = MadCLIP.load(small_detector, device="cpu")
    with pytest.raises(CheckpointError, match="madclip export"):
        choose_engine(detector, tmp_path, "openvino")
    with pytest.raises(CheckpointError, match="give auto, torch"):
        choose_engine(detector, tmp_path, "tensorrt")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("facts", "engine.json: damaged"),
        ("older", "engine.json: damaged or of another version"),
        ("xml", "model.xml: not the file that was exported"),
        ("bit", "model.bin: not the file that was exported"),
        ("nan", "model.bin: not the file that was exported"),
        ("gone", "model.bin: cannot be read"),
    ],
)
def test_damaged(damage, words, folder, detector, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder / "engines" / "openvino-fp32", copy)
    if damage == "facts":
        (copy / FACTS).write_text(json.dumps({"format": "openvino"}))
    elif damage == "older":
        facts = json.loads((copy / FACTS).read_text())
        (copy / FACTS).write_text(json.dumps({name: facts[name] for name in facts if name not in ("files", "seen")}))
    elif damage == "xml":
        (copy / "model.xml").write_text("<net>")
    elif damage == "bit":
        flip_a_bit(copy / "model.bin")
    elif damage == "nan":
        weights = np.fromfile(copy / "model.bin", np.uint8)
        weights[: 4 * 2000] = np.full(2000, np.nan, np.float32).view(np.uint8)
        weights.tofile(copy / "model.bin")
    else:
        (copy / "model.bin").unlink()
    with pytest.raises(CheckpointError, match=f"{words}.*export again"):
        use_engine(detector, copy)
    assert detector.engine is None


@pytest.mark.slow
def test_an_export_whose_files_changed_is_passed_over(folder, detector, tmp_path):
    copy = tmp_path / "detector"
    shutil.copytree(folder, copy)
    flip_a_bit(copy / "engines" / "openvino-fp32" / "model.bin")
    found, passed = choose_engine(detector, copy, "auto")
    assert found == copy / "engines" / "onnx-fp32"
    assert len(passed) == 1
    assert "model.bin: not the file" in passed[0]


@pytest.mark.slow
def test_images_that_an_export_was_made_on_are_not_measured(folder, detector, small_data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder / "engines" / "onnx-fp32", copy)
    dataset = load_dataset(small_data)
    seen = [sample.image.digest() for sample in dataset.test_pool[:2]]
    facts = json.loads((copy / FACTS).read_text())
    (copy / FACTS).write_text(json.dumps(facts | {"seen": seen}))
    use_engine(detector, copy)
    result = evaluate(detector, dataset)
    assert not {row.name for row in result.rows} & {dataset.name(sample.image) for sample in dataset.test_pool[:2]}


@pytest.mark.slow
def test_a_new_detector_takes_the_exports_of_the_old_with_it(folder, detector, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    detector.save(copy)
    assert not (copy / "engines").exists()
