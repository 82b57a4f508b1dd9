"""A detector in another engine says what it said before, or is not written."""

import hashlib
import json
import math
import shutil
import subprocess
import sys
import zipfile
from copy import deepcopy

import numpy as np
import pytest
import torch

from madclip import MadCLIP, cli, load_backbone
from madclip.data.ref import ImageRef
from madclip.errors import CheckpointError, DataError, MissingExtraError, RecipeError
from madclip.export import engines, images, openvino
from madclip.export.check import agreement, allowed_flips, require
from madclip.export.graph import DetectorGraph, in_float32
from madclip.export.images import check_images
from madclip.export.quantise import quantise
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
        expected = detector._compute(pixels)
        found = DetectorGraph(in_float32(detector))(pixels)
    for one, two in zip(expected, found, strict=True):
        assert one.shape == two.shape
        assert torch.allclose(one, two, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_partner_that_sees_another_size_is_exported_too(small_recipe, small_data, tmp_path):
    """OpenVINO cannot resize with antialiasing by itself."""
    pytest.importorskip("openvino")
    backbone = load_backbone("stand-in+lite0", image_size=64, device="cpu")
    assert backbone.towers[1].image_size != backbone.image_size
    fused = MadCLIP(small_recipe, backbone=backbone, objective="Brain").fit(small_data, shots=4, folds=0)
    facts = engines.export_engine(fused, small_data, tmp_path / "out", engine="openvino")
    assert max(facts["check"]["score"], facts["check"]["map"]) < 1e-4


@pytest.mark.parametrize("shots", [(4, 0), 0], ids=["normal images alone", "texts alone"])
def test_what_saw_no_abnormal_image_is_exported_too(shots, detector, small_data, tmp_path):
    pytest.importorskip("onnx")
    new = MadCLIP(detector.recipe, backbone=detector.backbone, objective="Brain").fit(small_data, shots=shots)
    facts = engines.export_engine(new, small_data, tmp_path / "out", engine="onnx")
    assert max(facts["check"]["score"], facts["check"]["map"]) < 1e-4
    image = next((small_data / "test" / "Ungood" / "img").iterdir())
    expected = new.predict(image)
    use_engine(new, tmp_path / "out")
    assert new.predict(image).score == pytest.approx(expected.score, abs=1e-4)


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
            expected = detector._compute(pixels)
        for one, two in zip(expected, model(pixels.numpy()), strict=True):
            assert np.abs(one.numpy() - two).max() < 1e-4
    assert facts["check"]["images"] == 8
    assert facts["check"]["shots"] == 8
    assert facts["check"]["upper"] == pytest.approx(1 - 0.05 ** (1 / 8))
    assert facts["seen"] == []
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    assert facts["files"] == {name: digest for name, digest in files.items() if name != "engine.json"}
    assert facts["check"]["rule"] == "threshold"
    assert json.loads((tmp_path / "out" / "engine.json").read_text()) == facts
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    here = str(engines.__file__).encode()[:20]
    for path in (tmp_path / "out").iterdir():
        assert here not in path.read_bytes()
        assert b"Maier" not in path.read_bytes()


@pytest.mark.slow
def test_int8_weights_overflow_on_no_processor(detector, small_data, tmp_path, traced_once):
    """Without VNNI two products of 8 bits are added in 16: 2 x 255 x 64 fits, 2 x 255 x 127 does not."""
    ov = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    pixels = check_images(in_float32(detector), small_data).pixels
    engines.write_model(in_float32(detector), "openvino", "int8", pixels, tmp_path)
    weights = [
        node.get_data()
        for node in ov.Core().read_model(tmp_path / "model.xml").get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i8
    ]
    assert len(weights) > 5
    assert 32 < max(np.abs(values.astype(int)).max() for values in weights) <= 64
    assert 2 * 255 * 64 <= np.iinfo(np.int16).max < 2 * 255 * 127


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


def test_images_are_the_shots_and_others_where_these_are_few(detector, make_images, small_data, tmp_path, monkeypatch):
    found = check_images(detector, small_data)
    assert (found.shots, found.pixels.shape, found.others) == (8, (8, 3, 64, 64), ()), "test/ is for evaluation"
    assert "only 8 images" in found.note
    other = make_images(tmp_path / "other", {"valid": (5, 5)}, seed=9)
    broken = next(iter((other / "valid" / "good" / "img").iterdir()))
    broken.write_bytes(b"not an image")
    shutil.copytree(small_data / "valid", other / "more")
    monkeypatch.setattr(images, "ENOUGH", 12)
    found = check_images(detector, other)
    assert (found.shots, len(found.pixels), len(found.others), found.note) == (8, 12, 4, "")
    assert not set(found.others) & set(detector.provenance.shots)
    assert ImageRef(broken).digest() not in found.others
    files = {ImageRef(path).digest() for path in (other / "valid").glob("*/img/*.png")}
    assert set(found.others) < files


def test_images_of_several_places(detector, make_images, small_data, tmp_path, monkeypatch):
    """As for a joint detector: the shots of all of them, and others of each in turn."""
    monkeypatch.setattr(images, "ENOUGH", 12)
    more = [make_images(tmp_path / name, {"valid": (4, 4)}, seed=seed) for name, seed in (("a", 7), ("b", 8))]
    found = check_images(detector, [*more, small_data])
    assert (found.shots, len(found.pixels)) == (8, 12)
    for folder in more:
        assert len(set(found.others) & {ImageRef(path).digest() for path in folder.rglob("img/*.png")}) == 2


def test_only_test_images_are_not_used_for_an_export(detector, make_images, tmp_path):
    with pytest.raises(DataError, match="left for evaluation"):
        check_images(detector, make_images(tmp_path / "d", {"test": (2, 2)}, seed=5))


def test_phantoms_only_with_a_note(detector):
    found = check_images(detector, None)
    assert (found.shots, found.pixels.shape, found.others) == (0, (32, 3, 64, 64), ())
    assert "checked on phantoms" in found.note
    assert np.array_equal(found.pixels, check_images(detector, None).pixels)


@pytest.mark.parametrize("images", [1, 5, 8, 24, 32, 64, 100, 300])
def test_the_rule_of_decisions_is_an_exact_binomial_test(images):
    """By summing the binomial distribution: one flip more than allowed is seen with a chance of at most 5 %."""
    chance = [math.comb(images, k) * 0.01**k * 0.99 ** (images - k) for k in range(images + 1)]
    allowed = allowed_flips(images)
    assert sum(chance[allowed + 1 :]) <= 0.05
    assert allowed == 0 or sum(chance[allowed:]) > 0.05


def flipped(count, of):
    maps, scores = np.zeros((of, 2, 2), np.float32), np.linspace(0.6, 0.9, of, dtype=np.float32)
    other = scores.copy()
    other[:count] = 0.4
    return agreement((scores, maps), (other, maps), threshold=0.5, shots=of)


def test_one_flip_of_32_is_not_refused():
    require(flipped(1, 32), "int8")
    require(flipped(3, 100), "int8")
    for count, of in ((2, 32), (4, 100), (1, 4)):
        with pytest.raises(CheckpointError, match=rf"at most {allowed_flips(of)} of {of} may"):
            require(flipped(count, of), "int8")


def test_what_few_images_leave_open_is_said():
    """Where nothing differs, the exact bound solves (1 - p)^n = 0.05."""
    for of in (8, 32, 64):
        assert flipped(0, of).upper == pytest.approx(1 - 0.05 ** (1 / of))
    # For one of 32 the chance of one flip or none is 5 % at the bound.
    p = flipped(1, 32).upper
    assert (1 - p) ** 32 + 32 * p * (1 - p) ** 31 == pytest.approx(0.05)
    assert flipped(4, 4).upper == 1


def test_decisions_by_hand():
    maps = np.zeros((4, 2, 2), np.float32)
    scores, other = np.float32([0.1, 0.4, 0.6, 0.9]), np.float32([0.1, 0.6, 0.4, 0.9])
    by_threshold = agreement((scores, maps), (other, maps), threshold=0.5, shots=4)
    assert (by_threshold.rule, by_threshold.changed) == ("threshold", 0.5)
    by_order = agreement((scores, maps), (other, maps), threshold=None, shots=0)
    assert (by_order.rule, by_order.changed) == ("order", pytest.approx(1 / 6))
    assert by_order.score == pytest.approx(0.2)
    for precision in ("fp32", "bf16", "int8"):
        with pytest.raises(CheckpointError, match=r"16\.7%"):  # of six pairs of four images: as one flip of four
            require(by_order, precision)
    slight = agreement((scores, maps), (scores + np.float32(0.01), maps), threshold=0.5, shots=4)
    require(slight, "int8")
    with pytest.raises(CheckpointError):
        require(slight, "fp32")
    lost = agreement((scores, maps), (scores * np.float32("nan"), maps), threshold=2.0, shots=4)
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
    arguments = ["export", small_detector, "--data", small_data, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["madclip", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    said = capsys.readouterr()
    assert "openvino in fp32; on 8 images (8 of the shots)" in said.out
    assert "at most 31.2% at 95 % confidence" in said.out
    assert "note: only 8 images" in said.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.xml", "model.bin", "engine.json"}


@pytest.mark.slow
def test_bfloat16_of_openvino_where_the_processor_has_it(detector, small_data, tmp_path, monkeypatch, traced_once):
    ov = pytest.importorskip("openvino")
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16, so there is nothing to compute in it")
    monkeypatch.setattr(engines, "require", lambda *_: None)  # as above
    facts = engines.export_engine(detector, small_data, tmp_path / "out", precision="bf16")
    assert 0 < facts["check"]["score"] < 0.05


def test_a_processor_without_bfloat16_is_told_so(detector, small_data, tmp_path, monkeypatch, traced_once):
    ov = pytest.importorskip("openvino")

    class Core:
        def get_property(self, device, name):
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8"]

    monkeypatch.setattr(ov, "Core", Core)
    with pytest.raises(RecipeError, match=r"no bfloat16.*choose fp32 or int8"):
        engines.export_engine(detector, small_data, tmp_path / "out", precision="bf16")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def written(detector, program, tmp_path_factory):
    """Models in float32 of every engine, unchecked."""
    root = tmp_path_factory.mktemp("written")
    pixels = np.zeros((1, 3, 64, 64), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "traced", lambda graph: deepcopy(program))
        for engine in engines.PRECISIONS:
            (root / engine).mkdir()
            engines.write_model(in_float32(detector), engine, "fp32", pixels, root / engine)
    return root


@pytest.mark.slow
def test_shapes_are_kept_and_the_axis_of_images_is_named(written):
    import onnx
    import openvino as ov

    model = ov.Core().read_model(written / "openvino" / "model.xml")
    assert str(model.inputs[0].partial_shape) == "[?,3,64,64]"
    assert [str(port.partial_shape) for port in model.outputs[:2]] == ["[?]", "[?,64,64]"]
    graph = onnx.load(written / "onnx" / "model.onnx").graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes["pixels"] == ["batch", 3, 64, 64]
    assert (shapes["score"], shapes["map"], shapes["pooled"][0]) == (["batch"], ["batch", 64, 64], "batch")


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(engines.PRECISIONS))
def test_what_is_not_a_number_is_never_answered(engine, written):
    model = engines.open_model(written / engine, engine, "fp32")
    pixels = np.random.default_rng(0).random((3, 3, 64, 64), np.float32)
    for bad in (np.nan, np.inf, -np.inf):
        wrong = pixels.copy()
        wrong[1, 2, 5, 7] = bad
        with pytest.raises(DataError, match="pixels that are not finite"):
            model(wrong)
        raw = model._model(wrong)  # what a runtime elsewhere says
        for part in raw:
            assert np.isnan(part[1]).all()
            assert np.isfinite(part[[0, 2]]).all()
    for size in ((3, 3, 65, 64), (3, 1, 64, 64), (3, 64, 64)):
        with pytest.raises(DataError, match=rf"{engine}: takes pixels \[B, 3, 64, 64\], not \[{size[0]}"):
            model(np.zeros(size, np.float32))
    edge = np.full((1, 3, 64, 64), 1.000001, np.float32)  # rounding
    assert all(np.isfinite(part).all() for part in model(edge))
    for index in range(3):

        class Broken:
            size = 64

            def __call__(self, batch, index=index):
                found = [part.copy() for part in model._model(batch)]
                found[index].flat[0] = np.nan
                return found

        with pytest.raises(DataError, match="x: the engine computed values that are not finite"):
            engines.CheckedModel(Broken(), "x")(pixels)


def test_torch_says_nothing_of_what_is_not_a_number(small_detector, small_data):
    broken = MadCLIP.load(small_detector, device="cpu")
    with torch.no_grad():
        broken.state.head.adapters.shared.fill_(torch.nan)
    (image, *_) = sorted(small_data.glob("test/*/img/*.png"))
    with pytest.raises(DataError, match=f"{image.name}: the detector computed values that are not finite"):
        broken.predict(image)
    with pytest.raises(DataError, match="not finite"):
        broken.score(torch.rand(1, 3, 64, 64))


@pytest.mark.slow
def test_a_quantisation_that_fails_is_one_line(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"model.onnx: int8 did not succeed .*choose another precision"):
        quantise(tmp_path / "model.onnx", np.zeros((1, 3, 64, 64), np.float32))


@pytest.mark.parametrize(("engine", "library"), [("openvino", "openvino"), ("onnx", "onnxscript")])
def test_a_missing_library(engine, library, detector, small_data, tmp_path, traced_once, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"pip install '\.\[{engine}\]'"):
        engines.export_engine(detector, small_data, tmp_path / "new" / "out", engine=engine)
    assert list((tmp_path / "new").iterdir()) == []


def test_telemetry_is_out_of_reach():
    code = (
        "import logging, sys, warnings\n"
        "before = logging.root.manager.disable, logging.getLogger().level, sys.stdout, sys.stderr\n"
        "from madclip.export.libraries import load_library\n"
        "load_library('openvino', 'openvino')\n"
        "assert before == (logging.root.manager.disable, logging.getLogger().level, sys.stdout, sys.stderr)\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "assert telemetry_utils.tm.__name__.endswith('telemetry_stub')\n"
        "nncf = load_library('nncf', 'openvino')\n"
        "from nncf.telemetry import telemetry\n"
        "assert 'Mock' in str(telemetry) or 'Mock' in type(telemetry).__name__, telemetry\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_an_export_leaves_the_process_as_it_was(detector, small_data, tmp_path, traced_once, capsys):
    """A server shares output, logging and warnings of its process with others."""
    import logging
    import threading
    import warnings

    said, stop = [], threading.Event()
    logger = logging.getLogger("somebody.else")
    logger.addHandler(handler := logging.Handler())
    handler.emit = said.append

    def talk():
        while not stop.wait(0.02):
            logger.warning("heard")
            print("heard")

    before = sys.stdout, sys.stderr, logging.getLoggerClass(), warnings.showwarning
    talking = threading.Thread(target=talk)
    talking.start()
    try:
        engines.export_engine(detector, small_data, tmp_path / "out", engine="onnx")
    finally:
        stop.set()
        talking.join()
        logger.removeHandler(handler)
    assert before == (sys.stdout, sys.stderr, logging.getLoggerClass(), warnings.showwarning)
    assert len(said) > 1
    assert capsys.readouterr().out.splitlines() == ["heard"] * len(said), "nothing of others is swallowed"
