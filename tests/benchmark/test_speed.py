"""Counts by hand, rows that say what they measured, and a naive step that computes what ours does."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from madclip import load_backbone
from madclip.benchmark import speed, speed_rows, timing
from madclip.cli import app
from madclip.errors import MissingExtraError, RecipeError
from madclip.head.head import Head
from madclip.recipe import Recipe
from madclip.training.encode import encode_patches


@pytest.fixture
def naive(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import naive

    yield naive
    sys.modules.pop("naive")


def test_counts_of_vit_l(small_backbone):
    from dataclasses import replace

    spec = replace(small_backbone.spec, depth=24, width=1024, embed_dim=768, text_width=768, prefix_tokens=1)
    # As counted elsewhere: 0.50 TFLOP for the adapters of a step, 0.20 for 42 prompts of 14 positions.
    assert timing.adapter_flops(spec, 289) == pytest.approx(0.50e12, rel=0.02)
    assert timing.prompt_flops(spec, 12, 42, 14) == pytest.approx(0.20e12, rel=0.02)
    assert timing.vision_flops(spec, 289) + timing.head_flops(spec, 289) == pytest.approx(0.195e12, rel=0.05)


def test_the_naive_step_computes_what_ours_does(naive):
    backbone = load_backbone("stand-in", image_size=64, device="cpu", dtype="float32")
    recipe = Recipe(image_size=64)
    head = Head(recipe, backbone, "Brain")
    generator = torch.Generator().manual_seed(0)
    pixels, labels = torch.rand(4, 3, 64, 64, generator=generator), torch.tensor([0, 1, 0, 1])
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    masks[1::2, 10:30, 10:30] = True
    tokens = encode_patches(backbone, recipe.view, pixels)
    ours = head.loss(head(tokens, head.text()), labels, masks).total
    expected = torch.autograd.grad(ours, list(head.parameters()))
    naive.materialise(backbone)
    theirs = naive.naive_loss(head, backbone, pixels, labels, masks)
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-4)
    theirs.backward()
    for parameter, gradient in zip(head.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-3)
    assert next(backbone.vision_blocks.parameters()).grad is not None


def test_a_row_says_what_it_measured():
    row = speed.measure("tokens_fp32", "tiny", "tiny")
    assert row.low <= row.seconds <= row.high
    assert row.per == "image"
    assert row.fraction == pytest.approx(row.flops / 1e9 / row.seconds / row.matmul_gflops_fp32)
    assert row.peak_mb > 100
    cells = [cell.strip() for cell in speed.markdown([row]).splitlines()[2].split("|")]
    assert cells[1:3] == ["`tokens_fp32`", "tiny"]


@pytest.mark.parametrize("command", ["bench", "benchmark"])
def test_the_command_runs_each_row_in_its_own_process(command):
    done = CliRunner().invoke(app, [command, "speed", "--only", "import", "--json"])
    (row,) = json.loads(done.stdout)["rows"]
    assert row["name"] == "import"
    assert row["matmul_gflops_fp32"] > 0
    assert 0 < row["seconds"] < 60


def test_the_memory_of_a_process_is_its_own():
    """Memory of who starts a process is not counted: not a row's, not that of a process which a row starts."""
    held = bytearray(400_000_000)
    held[::4096] = b"x" * len(held[::4096])
    code = "from madclip.benchmark.timing import peak_mb; print(peak_mb())"
    asked = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 5 < float(asked.stdout) < 100
    assert 5 < speed_rows._process(sys.executable, "-c", "pass").peak_mb < 100


def no_engine(_):
    raise MissingExtraError("no openvino")


def broken(_):
    raise ValueError("broken\nin two lines")


def killed(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_missing_engine_is_said_and_an_error_is_not_hidden(monkeypatch, tmp_path):
    """Each row runs in another process, which imports this module for it."""
    monkeypatch.setattr(speed, "measure", measure_badly)
    page, out = tmp_path / "page.md", tmp_path / "speed.json"
    page.write_text("a\n<!-- speed tiny -->\nold\n<!-- end speed tiny -->\nb\n")
    only = [word for name in ("predict_onnx_fp32", "help", "import") for word in ("--only", name)]
    done = CliRunner().invoke(app, ["bench", "speed", *only, "--json", "--out", str(out), "--docs", str(page)])
    assert done.exit_code == 2
    rows = json.loads(done.stdout)["rows"]
    assert json.loads(out.read_text())["rows"] == rows
    assert [row["failed"] for row in rows] == [False, True, True]
    assert rows[0]["reason"] == "not installed: no openvino"
    assert rows[1]["reason"] == "failed: ValueError: broken"
    assert "ended from outside" in rows[2]["reason"]
    assert "help: failed: ValueError: broken" in done.stderr
    text = page.read_text()
    assert "not installed: no openvino" in text
    assert text.startswith("a\n<!-- speed tiny -->\n")
    assert text.endswith("<!-- end speed tiny -->\nb\n")
    assert "old" not in text


def measure_badly(name, source, shown):
    {"predict_onnx_fp32": no_engine, "help": broken, "import": killed}[name](source)


@pytest.mark.parametrize("name", ["metrics_image", "metrics_pixel"])
def test_metrics_take_no_backbone(name):
    row = speed.measure(name, "none", "none")
    assert row.backbone == "-"
    assert 0 < row.seconds < 5


def test_random_weights_have_the_shape_that_is_asked_for(tmp_path):
    backbone = load_backbone(timing.make_random(tmp_path / "b", timing.Shape(64, 3, 8, 32, 24, 64, 2)), image_size=40)
    spec = backbone.spec
    assert (spec.width, spec.depth, spec.patch_size, spec.native_image_size) == (64, 3, 8, 32)
    assert (spec.embed_dim, spec.text_width, len(backbone.text_blocks)) == (24, 64, 2)


def test_unknown_row():
    with pytest.raises(RecipeError, match="unknown row 'x'"):
        list(speed.measure_all(["x"], "tiny"))
