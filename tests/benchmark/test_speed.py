"""Counts by hand, rows that say what they measured, and a naive step that computes what ours does."""

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from madclip import load_backbone
from madclip.benchmark import speed
from madclip.errors import RecipeError
from madclip.head.head import Head
from madclip.recipe import Recipe
from madclip.training.tokens import encode_patches


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
    assert speed.adapter_flops(spec, 289) == pytest.approx(0.50e12, rel=0.02)
    assert speed.prompt_flops(spec, 12, 42, 14) == pytest.approx(0.20e12, rel=0.02)
    assert speed.vision_flops(spec, 289) + speed.head_flops(spec, 289) == pytest.approx(0.195e12, rel=0.05)


def test_the_naive_step_computes_what_ours_does(naive):
    backbone = load_backbone("stand-in", image_size=64, device="cpu", dtype="float32")
    recipe = Recipe(image_size=64)
    head = Head(recipe, backbone, "Brain")
    generator = torch.Generator().manual_seed(0)
    pixels, labels = torch.rand(4, 3, 64, 64, generator=generator), torch.tensor([0, 1, 0, 1])
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    masks[1::2, 10:30, 10:30] = True
    tokens = encode_patches(backbone, recipe, pixels)
    ours = head.loss(head(tokens, head.text()), labels, masks, torch.ones(4, dtype=torch.bool)).total
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
    assert "`tokens_fp32` | tiny" in speed.markdown([row, ("x", "not measured: no")])


def test_the_command_runs_each_row_in_its_own_process():
    from madclip.cli.commands import app

    done = CliRunner().invoke(app, ["benchmark", "speed", "--only", "import", "--json"])
    (row,) = json.loads(done.stdout)["rows"]
    assert row["name"] == "import"
    assert row["matmul_gflops_fp32"] > 0
    assert 0 < row["seconds"] < 60


def test_unknown_row():
    with pytest.raises(RecipeError, match="unknown row 'x'"):
        list(speed.measure_all(["x"], "tiny"))
