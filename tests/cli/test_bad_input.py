"""What goes wrong in practice: one clear line that names the file and says what to do, exit code 2, no traceback."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file


def png(values, path):
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def huge_png(path):
    """A header of 40,000 x 40,000 pixels and hardly any data."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    return path


def truncated_png(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64))
    whole = png(noise, path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def nan_tiff(path):
    values = np.full((64, 64), 0.5, np.float32)
    values[3, 4] = np.nan
    tifffile.imwrite(path, values)
    return path


def text_png(path):
    path.write_text("not an image")
    return path


BAD_IMAGES = {
    "truncated.png": (truncated_png, "damaged"),
    "text.png": (text_png, "not a DICOM, PNG"),
    "dot.png": (lambda path: png([[7]], path), "at least"),
    "huge.png": (huge_png, "40000 x 40000"),
    "nan.tif": (nan_tiff, "NaN"),
    "empty.jpg": (lambda path: path.touch() or path, "empty"),
}


@pytest.fixture
def data(make_images, tmp_path):
    return make_images(tmp_path / "data", {"valid": (2, 2), "test": (2, 2)})


@pytest.fixture
def fit(madclip, small, tmp_path):
    def run(folder, *extra):
        result = madclip("fit", folder, "--out", tmp_path / "d", "--shots", 2, "--folds", 0, *small, *extra)
        assert not (tmp_path / "d").exists() or result.code == 0
        return result

    return run


@pytest.fixture
def detector(small_detector, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(small_detector, tmp_path / "detector")


def first(folder, pattern):
    return min(folder.glob(pattern))


# Data


def test_folders_without_images(fit, madclip, tmp_path):
    fit(tmp_path / "none").one_line(tmp_path / "none", "no such folder")
    (tmp_path / "empty").mkdir()
    fit(tmp_path / "empty").one_line(tmp_path / "empty", "empty")
    madclip("data", "check", tmp_path / "none").one_line(tmp_path / "none")
    madclip("data", "check", tmp_path / "empty").one_line(tmp_path / "empty")


def test_no_normal_images(fit, data):
    shutil.rmtree(data / "valid" / "good")
    for shots in ("2", "2,0", "all"):
        result = fit(data, "--shots", shots)
        assert result.code == 2
        assert result.err.count("\n") == 1
    shutil.rmtree(data / "test" / "good")
    fit(data).one_line(data, "no normal images")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--shots", "2,1"], ["fewer images than shots", "0 abnormal"]),
        (["--shots", "3"], ["fewer images than shots", "2 normal"]),
        (["--select", "val"], ["--select val", "nothing is trained"]),
        (["--operating-point", "sens=0.9"], ["sens=0.9", "needs abnormal"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_arguments_without_abnormal_images(fit, data, extra, words):
    shutil.rmtree(data / "valid" / "Ungood")
    fit(data, *extra).one_line(*words)


def test_arguments_without_images(madclip, tmp_path, small, data):
    out = tmp_path / "d"
    madclip("fit", "--out", out, *small).one_line("DATA is missing", "--shots 0")
    madclip("fit", "--out", out, "--shots", 0, "--backbone", "lite0").one_line("lite0", "no texts")
    madclip("fit", "--out", out, "--shots", 0, *small, "--select", "val").one_line("nothing is trained")
    madclip("fit", "--out", out, "--shots", 0, *small, "--objective", " ").one_line("objective", "empty")
    madclip("repeat", data, "--out", out, "--shots", 0, *small).one_line("--shots 0", "every draw is the same")
    assert not out.exists()


def test_fewer_images_than_shots(fit, data):
    fit(data, "--shots", "3").one_line("fewer images than shots", "2 normal and 2 abnormal there")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((32, 64), 255), "64 x 32"),
        (np.zeros((64, 64)), "empty"),
        (np.arange(4096).reshape(64, 64) % 256, "threshold"),
    ],
    ids=["size", "empty", "values"],
)
def test_masks_of_abnormal_images(fit, data, values, words):
    mask = png(values, first(data, "valid/Ungood/anomaly_mask/*.png"))
    fit(data).one_line(mask, words)


def test_a_mask_that_marks_a_normal_image(fit, data):
    image = first(data, "valid/good/img/*.png")
    mask = data / "valid" / "good" / "anomaly_mask" / image.name
    mask.parent.mkdir()
    png(np.full((64, 64), 255), mask)
    fit(data).one_line(mask, "normal image")


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_images_that_cannot_be_learned_from(fit, data, name):
    make, words = BAD_IMAGES[name]
    image = first(data, "valid/good/img/*.png")
    image.unlink()
    bad = make(image.with_name(name))
    fit(data).one_line(bad, words)


def test_in_a_batch_the_rest_goes_on(madclip, small_detector, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, (make, _) in BAD_IMAGES.items():
        make(folder / name)
    good = [png(np.random.default_rng(i).integers(0, 256, (48, 80)), folder / f"good{i}.png") for i in range(2)]
    odd = png(np.zeros((64, 64)), os.fsdecode(os.fsencode(folder) + b"/latin-\xe9.png"))
    good.append(odd)
    result = madclip("predict", small_detector, folder, "--out", tmp_path / "results", "--json")
    assert result.code == 2
    assert "Traceback" not in result.err
    facts = json.loads(result.out)
    rows = [json.loads(line) for line in (tmp_path / "results" / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert len(facts["predictions"]) == len(good)
    assert len(rows) == len(good) + len(BAD_IMAGES)
    errors = {Path(row["image"]).name: row["error"] for row in rows if row["error"]}
    for name, (_, words) in BAD_IMAGES.items():
        assert str(folder / name) in errors[name]
        assert words in errors[name]
        assert f"failed: {errors[name]}" in result.err


def test_inputs_of_predict(madclip, small_detector, tmp_path):
    out = tmp_path / "results"
    madclip("predict", small_detector, tmp_path / "none.png", "--out", out).one_line("none.png")
    (tmp_path / "empty").mkdir()
    madclip("predict", small_detector, tmp_path / "empty", "--out", out).one_line("empty", "no images")
    madclip("predict", small_detector, tmp_path / "*.gif", "--out", out).one_line("*.gif")
    image = png(np.zeros((64, 64)), tmp_path / "a.png")
    madclip("predict", small_detector, image, "--out", image).one_line(image, "cannot write")
    madclip("predict", small_detector, image, "--out", out, "--maps", "exr").one_line("--maps", "tiff")
    madclip("predict", tmp_path / "nothing", image, "--out", out).one_line("nothing", "not a detector")


# Arguments


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--set", "epochz=3"], ["epochz", "did you mean 'epochs'"]),
        (["--set", "epochs"], ["FIELD=VALUE"]),
        (["--set", "epochs=many"], ["epochs", "number"]),
        (["--set", "epochs=0"], ["epochs"]),
        (["--set", "image_size=7"], ["image_size"]),
        (["--set", "contrast=maybe"], ["contrast", "true or false"]),
        (["--set", "variants=flip-horizontal"], ["identity"]),
        (["--set", "variants=identity,spin"], ["spin"]),
        (["--set", "positions=start"], ["positions", "front"]),
        (["--set", "contexts=64", "--objective", "word " * 20], ["too long"]),
        (["--recipe", "papers"], ["papers", "released"]),
        (["--objective", ""], ["objective", "empty"]),
        (["--objective", "  "], ["objective", "empty"]),
        (["--shots", "none"], ["--shots"]),
        (["--shots", "0,2"], ["--shots"]),
        (["--shots", "-1"], ["--shots"]),
        (["--shots", "²"], ["--shots"]),
        (["--shots", "1,2,3"], ["--shots"]),
        (["--seed", "-1"], ["seed"]),
        (["--seed", str(10**30)], ["seed"]),
        (["--folds", "1"], ["folds"]),
        (["--folds", "-2"], ["folds"]),
        (["--operating-point", "sens=2"], ["sens"]),
        (["--select", "best"], ["--select", "last"]),
        (["--select", "val", "--resume"], ["selects its epoch by val", "without resume"]),
        (["--operating-point", "best"], ["best", "youden"]),
        (["--device", "abacus"], ["abacus", "cpu"]),
        (["--backbone", "stand-inn"], ["stand-inn", "did you mean 'stand-in'"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_arguments_of_fit(fit, data, extra, words):
    fit(data, *extra).one_line(*words)


@pytest.mark.parametrize("limit", ["much", "-5GB", "inf", "nan", "5XB", ""])
def test_limits_of_the_cache(madclip, limit):
    madclip("cache", "--limit", limit).one_line("--limit", "5GB")


def test_arguments_of_the_other_commands(madclip, small_detector, small_data, tmp_path):
    madclip("evaluate", small_detector, small_data, "--pixel-size", "big").one_line("--pixel-size", "native")
    madclip("evaluate", small_detector, tmp_path / "none").one_line("none")
    report = tmp_path / "missing" / "report.html"
    (tmp_path / "missing").write_text("a file in the way")
    madclip("evaluate", small_detector, small_data, "--report", report).one_line(tmp_path / "missing")
    madclip("phantoms", tmp_path / "p", "--modality", "knee").one_line("knee", "brain")
    madclip("phantoms", tmp_path / "p", "--modality", "generic", "--normal", "-3").one_line()
    madclip("phantoms", tmp_path / "p", "--modality", "generic", "--size", "1").one_line("pixels")
    madclip("phantoms", small_data, "--modality", "generic").one_line(small_data)


# Backbones and checkpoints


class Runs:
    """Unpickled carelessly, this makes a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


def corrupt(path, tmp_path):
    path.write_bytes(b"PK\x03\x04" + bytes(200))


def unsafe(path, tmp_path):
    torch.save({"visual.conv1.weight": Runs(tmp_path / "it-ran")}, path)


def bare_pickle(path, tmp_path):
    path.write_bytes(pickle.dumps(Runs(tmp_path / "it-ran")))


def list_of_numbers(path, tmp_path):
    torch.save([1, 2, 3], path)


@pytest.mark.parametrize("spoil", [corrupt, unsafe, bare_pickle, list_of_numbers])
def test_backbones_that_cannot_be_read(fit, data, tmp_path, spoil):
    path = tmp_path / "clip.pt"
    spoil(path, tmp_path)
    fit(data, "--backbone", path).one_line(path)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("spoil", [corrupt, unsafe, bare_pickle, list_of_numbers])
def test_published_checkpoints_that_cannot_be_read(madclip, tmp_path, spoil):
    path = tmp_path / "Brain.pth"
    spoil(path, tmp_path)
    arguments = ["--out", tmp_path / "d", "--backbone", "stand-in", "--objective", "Brain", "--device", "cpu"]
    result = madclip("import-released", path, *arguments)
    result.one_line(path)
    assert "weights_only" not in result.err
    assert not (tmp_path / "it-ran").exists()
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("backbone", ["stand-in", "clip-vit-l-14-336"])
def test_a_published_checkpoint_that_is_not_there_asks_for_no_backbone(madclip, tmp_path, monkeypatch, backbone):
    monkeypatch.setattr("madclip.backbones.hub.download", lambda *_: pytest.fail("there was nothing to download for"))
    arguments = ["--out", tmp_path / "d", "--backbone", backbone, "--objective", "Brain", "--device", "cpu"]
    result = madclip("import-released", tmp_path / "none.pth", *arguments)
    result.one_line("none.pth", "no such file")
    assert "download" not in result.err


def test_a_published_checkpoint_of_another_backbone(madclip, tmp_path):
    import released_files

    path = released_files.write_released(tmp_path / "Brain.pth")
    arguments = ["--out", tmp_path / "d", "--backbone", "stand-in", "--objective", "Brain", "--device", "cpu"]
    madclip("import-released", path, *arguments).one_line(path, "another CLIP than stand-in")
    states = torch.load(path, weights_only=True)
    states["prompt_maker_normal"] = {"token_embedding.weight": 3}
    torch.save(states, path)
    madclip("import-released", path, *arguments).one_line(path)


# Saved detectors


def refused(madclip, detector, tmp_path, *words):
    image = png(np.zeros((64, 64)), tmp_path / "a.png")
    madclip("predict", detector, image, "--out", tmp_path / "r").one_line(detector, *words)
    assert not (tmp_path / "r").exists()


def test_weights_of_another_shape(madclip, detector, tmp_path):
    path = detector / "head.safetensors"
    tensors = load_file(path)
    save_file({name: value[..., :-1].contiguous() for name, value in tensors.items()}, path)
    refused(madclip, detector, tmp_path, "head.safetensors", "shape")
    save_file({f"{name}.x": value for name, value in tensors.items()}, path)
    refused(madclip, detector, tmp_path, "head.safetensors")
    save_file({name: value * torch.nan for name, value in tensors.items()}, path)
    refused(madclip, detector, tmp_path, "NaN")
    path.write_bytes(path.read_bytes()[:500])
    refused(madclip, detector, tmp_path, "damaged")
    path.unlink()
    refused(madclip, detector, tmp_path, "missing")


def test_another_backbone(madclip, detector, tmp_path):
    import released_files

    toy = released_files.write_openai(tmp_path / "toy.pt")
    image = png(np.zeros((64, 64)), tmp_path / "a.png")
    result = madclip("predict", detector, image, "--out", tmp_path / "r", "--backbone", toy)
    guessed, error = result.err.splitlines()
    assert guessed.startswith("note: ")
    assert "activation" in guessed
    result._replace(err=f"{error}\n").one_line(detector, "fitted with backbone stand-in", "toy.pt")


def changed(detector, change):
    path = detector / "detector.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


@pytest.mark.parametrize(("version", "advice"), [(0, "fit it anew"), (3, "update madclip"), ("one", "fit it anew")])
def test_other_format_versions(madclip, detector, tmp_path, version, advice):
    changed(detector, lambda facts: facts.update(format=version))
    refused(madclip, detector, tmp_path, f"format version {version}", advice)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["recipe", "epochz"], 3),
        (["recipe", "name"], "unknown"),
        (["recipe"], [1]),
        (["backbone"], {}),
        (["backbone"], "stand-in"),
        (["backbone", "source"], "/nowhere/clip.pt"),
        (["backbone", "source"], None),
        (["backbone", "fingerprint"], 7),
        (["backbone", "dtype"], None),
        (["objective"], ""),
        (["objective"], 5),
        (["provenance"], None),
        (["provenance", "masks"], "many"),
        (["history"], 3),
        (["calibration"], {"format": 1}),
        (["calibration"], {"format": 99}),
        (["calibration"], [1]),
        (["calibration", "surprise"], 1),
        (["familiarity"], {"format": 1}),
        (["familiarity", "features"], [["x"]]),
        (["familiarity"], 3),
    ],
    ids=lambda value: "".join(map(str, value))[:40] if isinstance(value, list) else str(value)[:20],
)
def test_damaged_facts(madclip, detector, tmp_path, keys, value):
    def change(facts):
        for key in keys[:-1]:
            facts = facts[key]
        facts[keys[-1]] = value

    changed(detector, change)
    image = png(np.zeros((64, 64)), tmp_path / "a.png")
    result = madclip("predict", detector, image, "--out", tmp_path / "r")
    if keys not in (["provenance", "masks"], ["history"]):  # do no harm
        result.one_line(detector)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\xff\xfe", '{"format": 1}'])
def test_facts_that_are_no_json_object(madclip, detector, tmp_path, text):
    (detector / "detector.json").write_text(text, "latin-1")
    refused(madclip, detector, tmp_path, "detector.json")


# Where results go


def test_detectors_replace_only_detectors(fit, data, tmp_path, madclip, small):
    (tmp_path / "d").mkdir()
    notes = tmp_path / "d" / "notes.txt"
    notes.write_text("mine")
    arguments = ["--shots", 2, "--folds", 0, *small]
    madclip("fit", data, "--out", tmp_path / "d", *arguments).one_line(tmp_path / "d", "another folder")
    notes.unlink()
    assert madclip("fit", data, "--out", tmp_path / "d", *arguments).code == 0
    assert madclip("fit", data, "--out", tmp_path / "d", *arguments, "--seed", 1, "--overwrite").code == 0
    assert json.loads((tmp_path / "d" / "detector.json").read_text())["provenance"]["seed"] == 1
    notes.write_text("mine")
    for extra in ([], ["--overwrite"]):
        madclip("fit", data, "--out", tmp_path / "d", *arguments, *extra).one_line(tmp_path / "d", "another folder")
    assert notes.read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".d")]


def test_targets_that_cannot_be(madclip, small, data, tmp_path, monkeypatch):
    arguments = ["--shots", 2, "--folds", 0, *small]
    file = tmp_path / "file"
    file.write_text("in the way")
    madclip("fit", data, "--out", file, *arguments).one_line(file)
    madclip("fit", data, "--out", file / "d", *arguments).one_line(file)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", "/", ".."):
        madclip("fit", data, "--out", out, *arguments).one_line("another folder")


def test_state_of_another_fit(madclip, small, data, tmp_path):
    state = tmp_path / "d.fit-state"
    state.write_bytes(b"something else")
    arguments = ["--out", tmp_path / "d", "--shots", 2, "--folds", 0, *small]
    madclip("fit", data, *arguments, "--resume").one_line(state, "delete it")
    assert madclip("fit", data, *arguments).code == 0


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 300 kB."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root on Linux can make a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(madclip, small, data, full_disk, small_detector, tmp_path, monkeypatch):
    out = full_disk / "d"
    arguments = ["--shots", 2, "--folds", 0, *small]
    madclip("fit", data, "--out", out, *arguments).one_line(full_disk)
    assert list(full_disk.iterdir()) == []
    image = png(np.random.default_rng(0).integers(0, 256, (900, 900)), tmp_path / "a.png")
    madclip("predict", small_detector, image, "--out", full_disk / "r").one_line(full_disk)
    assert not list(full_disk.rglob("predictions.jsonl"))
    madclip("phantoms", full_disk / "p", "--modality", "generic").one_line(full_disk)
    shutil.rmtree(full_disk / "r")
    (full_disk / "filler").write_bytes(bytes(250_000))
    monkeypatch.setenv("MADCLIP_CACHE", str(full_disk / "tokens"))
    madclip("fit", data, "--out", tmp_path / "d2", *arguments).one_line(full_disk, "free some space")
    assert not list(full_disk.rglob("tokens/*.partial"))


def test_a_full_disk_while_saving(madclip, small, data, tmp_path, monkeypatch):
    """The same without root: the write of the weights fails."""
    from safetensors import SafetensorError

    from madclip import storage

    def fail(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(storage, "save_file", fail)
    out = tmp_path / "d"
    result = madclip("fit", data, "--out", out, "--shots", 2, "--folds", 0, *small)
    result.one_line(out, "No space left")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]


@pytest.mark.parametrize("arguments", [["--clear"], [], ["--limit", "5GB"]])
def test_a_cache_that_is_no_folder(madclip, monkeypatch, tmp_path, arguments):
    (tmp_path / "tokens").write_text("a file")
    monkeypatch.setenv("MADCLIP_CACHE", str(tmp_path / "tokens"))
    madclip("cache", *arguments).one_line(f"{tmp_path}/tokens: the token cache cannot be", "set MADCLIP_CACHE")
    assert (tmp_path / "tokens").read_text() == "a file"
