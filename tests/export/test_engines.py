"""A detector in another engine says what it said before, or is not written."""

import json
import subprocess
import sys
import zipfile
from copy import deepcopy

import numpy as np
import pytest
import torch

from madclip import MadCLIP, cli
from madclip.data.ref import ImageRef
from madclip.errors import CheckpointError, DataError, MissingExtraError, RecipeError
from madclip.export import engines, openvino
from madclip.export.check import agreement, require
from madclip.export.graph import DetectorGraph, in_float32
from madclip.export.use import use_engine


@pytest.fixture(scope="module")
def detector(small_detector):
    return MadCLIP.load(small_detector, device="cpu")


@pytest.fixture(scope="module")
def program(detector):
    return engines.traced(DetectorGraph(in_float32(detector)))


@pytest.fixture
def traced_once(program, monkeypatch):
    """Tracing takes seconds and does not depend on the test."""
    monkeypatch.setattr(engines, "traced", lambda graph: program)


def test_graph_is_the_detector(detector):
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = detector._score_fitted(detector.state.head, pixels)
        found = DetectorGraph(in_float32(detector))(pixels)
    for one, two in zip(expected, found, strict=True):
        assert one.shape == two.shape
        assert torch.allclose(one, two, atol=1e-5, rtol=0)


def test_a_detector_in_bfloat16_is_exported_from_the_weights_in_float32(small_detector, detector):
    half = MadCLIP.load(small_detector, device="cpu")
    half.backbone = deepcopy(half.backbone).to(torch.bfloat16)
    again = in_float32(half)
    assert again.backbone.dtype == torch.float32
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.score(pixels)[0], detector.score(pixels)[0])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnx", "torch"])
def test_exported_model_equals_the_detector_for_any_batch(engine, detector, small_data, tmp_path, traced_once, capfd):
    facts = engines.export_engine(detector, small_data, tmp_path / "out", engine=engine)
    assert capfd.readouterr() == ("", "")
    model = engines.open_model(tmp_path / "out", engine, "fp32")
    for count in (1, 3, 5):
        pixels = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected = detector._score_fitted(detector.state.head, pixels)
        for one, two in zip(expected, model(pixels.numpy()), strict=True):
            assert np.abs(one.numpy() - two).max() < 1e-4
    assert facts["check"]["images"] == 8
    assert facts["check"]["shots"]
    assert facts["check"]["rule"] == "threshold"
    assert json.loads((tmp_path / "out" / "engine.json").read_text()) == facts
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    here = str(engines.__file__).encode()[:20]
    for path in (tmp_path / "out").iterdir():
        assert here not in path.read_bytes()
        assert b"Maier" not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_int8_is_calibrated_and_checked(engine, detector, small_data, tmp_path, traced_once, monkeypatch, capfd):
    monkeypatch.setattr(engines, "require", lambda *_: None)  # of random weights, whose scores lie close together
    facts = engines.export_engine(detector, small_data, tmp_path / "out", engine=engine, precision="int8")
    assert capfd.readouterr() == ("", "")
    assert 0 < facts["check"]["score"] < 0.05
    plain = sum(p.numel() for p in detector.backbone.vision_blocks.parameters()) * 4
    weights = "model.bin" if engine == "openvino" else "model.onnx"
    assert (tmp_path / "out" / weights).stat().st_size < plain / 2


@pytest.mark.slow
def test_bfloat16_of_torch_is_computed_in_bfloat16(detector, small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "require", lambda *_: None)  # as above
    facts = engines.export_engine(detector, small_data, tmp_path / "out", engine="torch", precision="bf16")
    assert 0 < facts["check"]["score"] < 0.05
    found = engines.open_model(tmp_path / "out", "torch", "bf16")(np.zeros((3, 3, 64, 64), np.float32))
    assert {part.dtype for part in found} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_a_program_holds_no_pickle_and_is_not_read_back(detector, small_data, tmp_path, traced_once):
    engines.export_engine(detector, small_data, tmp_path / "out", engine="torch")
    with zipfile.ZipFile(tmp_path / "out" / "model.pt2") as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    # A pickle starts with its protocol; PyTorch's own lie in an archive within the archive.
    assert not [name for name, part in parts.items() if part[:2] in (b"\x80\x02", b"\x80\x04", b"PK")]
    with pytest.raises(CheckpointError, match="for use elsewhere"):
        use_engine(detector, tmp_path / "out")


@pytest.mark.slow
def test_a_model_that_disagrees_is_not_written(detector, small_data, tmp_path, traced_once, monkeypatch):
    true = openvino.OpenVINOModel.__call__

    def perturbed(self, pixels):
        scores, maps, pooled = true(self, pixels)
        return [scores + 2.5e-3, maps, pooled]

    monkeypatch.setattr(openvino.OpenVINOModel, "__call__", perturbed)
    with pytest.raises(CheckpointError, match=r"not written.*up to 0\.0025"):
        engines.export_engine(detector, small_data, tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


def test_images_are_the_shots_or_the_first_that_can_be_read(detector, make_images, small_data, tmp_path, monkeypatch):
    pixels, shots = engines.check_images(detector, small_data)
    assert shots
    assert pixels.shape == (8, 3, 64, 64)
    other = make_images(tmp_path / "other", {"test": (5, 5)}, seed=9)
    broken = next(iter((other / "test" / "good" / "img").iterdir()))
    broken.write_bytes(b"not an image")
    assert ImageRef(broken).digest() not in detector.provenance.shots
    monkeypatch.setattr(engines, "OTHERS", 7)
    pixels, shots = engines.check_images(detector, other)
    assert not shots
    assert len(pixels) == 7


def test_decisions_by_hand():
    maps = np.zeros((4, 2, 2), np.float32)
    scores, other = np.float32([0.1, 0.4, 0.6, 0.9]), np.float32([0.1, 0.6, 0.4, 0.9])
    by_threshold = agreement((scores, maps), (other, maps), threshold=0.5, shots=True)
    assert (by_threshold.rule, by_threshold.changed) == ("threshold", 0.5)
    by_order = agreement((scores, maps), (other, maps), threshold=None, shots=False)
    assert (by_order.rule, by_order.changed) == ("order", pytest.approx(1 / 6))
    assert by_order.score == pytest.approx(0.2)
    for precision in ("fp32", "bf16", "int8"):
        with pytest.raises(CheckpointError, match=r"16\.7%"):
            require(by_order, precision)
    slight = agreement((scores, maps), (scores + np.float32(0.01), maps), threshold=0.5, shots=True)
    require(slight, "int8")
    with pytest.raises(CheckpointError):
        require(slight, "fp32")
    lost = agreement((scores, maps), (scores * np.float32("nan"), maps), threshold=2.0, shots=True)
    assert lost.changed == 0
    with pytest.raises(CheckpointError, match="inf"):
        require(lost, "int8")


def test_what_cannot_be_asked_for(detector, small_data, tmp_path):
    with pytest.raises(RecipeError, match="no bf16 for onnx"):
        engines.export_engine(detector, small_data, tmp_path / "out", engine="onnx", precision="bf16")
    with pytest.raises(DataError, match="exists already"):
        engines.export_engine(detector, small_data, tmp_path)


@pytest.mark.slow
def test_command(small_detector, small_data, tmp_path, monkeypatch, capsys, traced_once):
    arguments = ["export", small_detector, "--data", small_data, "--out", tmp_path / "out", "--precision", "bf16"]
    monkeypatch.setattr(sys, "argv", ["madclip", *map(str, arguments)])
    monkeypatch.setattr(engines, "require", lambda *_: None)  # as above
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "openvino in bf16; on 8 images of the shots" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.xml", "model.bin", "engine.json"}


@pytest.mark.parametrize(("engine", "library"), [("openvino", "openvino"), ("onnx", "onnxscript")])
def test_a_missing_library(engine, library, detector, small_data, tmp_path, traced_once, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'madclip\[{engine}\]'"):
        engines.export_engine(detector, small_data, tmp_path / "new" / "out", engine=engine)
    assert list((tmp_path / "new").iterdir()) == []


def test_telemetry_is_out_of_reach():
    code = (
        "from madclip.export.quiet import load_library\n"
        "load_library('openvino', 'openvino')\nnncf = load_library('nncf', 'openvino')\n"
        "import sys\nfrom nncf.telemetry import telemetry\nfrom openvino.tools.ovc import telemetry_utils\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "assert 'Mock' in str(telemetry) or 'Mock' in type(telemetry).__name__, telemetry\n"
        "assert telemetry_utils.tm.__name__.endswith('telemetry_stub')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
