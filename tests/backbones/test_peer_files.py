"""Files that timm, open_clip and transformers wrote (tools/peer_towers.py), against what these computed from them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from madclip.backbones import load_backbone
from madclip.backbones.build import build
from madclip.backbones.sources import find_checkpoint
from madclip.errors import CheckpointError, RecipeError

PEERS = Path(__file__).with_name("peers")
TIMM = sorted(folder.name for folder in PEERS.glob("vit*"))
BOUND = 2e-6
"""Relative to the largest value; a norm whose epsilon is ten times another's moves a stream by more."""


def relative(found, expected):
    return float(np.abs(found.numpy() - expected).max() / np.abs(expected).max())


def tower(folder, size=16):
    checkpoint, entry, name = find_checkpoint(str(folder))
    place = {"device": torch.device("cpu"), "dtype": torch.float32}
    return build(checkpoint, name=name, entry=entry, image_size=size, **place)


def expected(name):
    with np.load(PEERS / name / "expected.npz") as arrays:
        return {key: arrays[key] for key in arrays}


@pytest.fixture
def copy(tmp_path):
    """A copy of a fixture, with changes to its configuration and weights."""

    def make(name, change=None, weights=None):
        folder = Path(shutil.copytree(PEERS / name, tmp_path / name))
        config = next(folder.glob("*config.json"))
        if change:
            said = json.loads(config.read_text())
            change(said)
            config.write_text(json.dumps(said))
        file = next(folder.glob("*.safetensors"))
        if weights:
            state = load_file(file)
            weights(state)
            save_file(state, file)
        return folder

    return make


def refused(folder, match, kind=CheckpointError):
    with pytest.raises(kind, match=match) as caught:
        tower(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TIMM)
class TestTimm:
    def test_taps_are_those_of_timm(self, name):
        values = expected(name)
        for i, stream in enumerate(tower(PEERS / name).encode_image(torch.from_numpy(values["pixels"]).float())):
            assert relative(stream, values[f"tokens{i}"]) < BOUND

    def test_it_is_a_partner(self, name):
        fused = load_backbone(f"stand-in+{PEERS / name}", image_size=64, device="cpu")
        assert fused.grid == fused.towers[1].grid == (4, 4)
        assert fused.spec.width == 192 + 24


def test_normalisation_is_that_of_the_file():
    assert tower(PEERS / "vit").spec.mean == (0.5, 0.5, 0.5)
    assert tower(PEERS / "vit-dinov2-reg").spec.std == (0.229, 0.224, 0.225)


def test_prefix_tokens():
    assert [tower(PEERS / name).spec.prefix_tokens for name in TIMM] == [1, 1, 5, 1, 3, 0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.update(architecture="resnet50"), "'resnet50' is no plain vision transformer"),
        (lambda c: c.update(architecture="vit_base_patch16_rpn_224"), "rpn_224' is no plain"),
        (lambda c: c.update(architecture=7), "'7' is no plain"),
        (lambda c: c["model_args"].update(num_heads=5), "5 attention heads do not fit"),
        (lambda c: c["model_args"].update(num_heads="two"), "makes no model"),
        (lambda c: c["model_args"].update(act_layer="relu"), "activation 'relu'"),
        (lambda c: c["pretrained_cfg"].update(mean=[1]), "mean should be three numbers"),
        (lambda c: c.update(model_args=3), "should be objects"),
    ],
)
def test_configurations_of_timm_that_cannot_be_read(copy, change, match):
    refused(copy("vit", change), match)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (lambda s: s.pop("pos_embed"), "without a usable pos_embed, is no plain .*DINOv3 as transformers"),
        (lambda s: s.update({"blocks.0.attn.q_norm.weight": torch.ones(2)}), "with blocks.0.attn.q_norm.weight, is no"),
        (lambda s: s.update({"pos_embed": torch.zeros(1, 19, 24)}), "with 19 positions, no square"),
        (lambda s: s.update({"cls_token": torch.zeros(24)}), "without a usable cls_token"),
        (lambda s: s.pop("blocks.2.norm1.bias"), "missing: layer.2.norm1.bias"),
        (lambda s: s.update({"blocks.1.attn.qkv.weight": torch.zeros(())}), "with blocks.1.attn.qkv.weight, is no"),
    ],
)
def test_weights_of_timm_that_cannot_be_read(copy, weights, match):
    refused(copy("vit", weights=weights), match)


def test_a_tower_of_timm_has_no_texts():
    with pytest.raises(RecipeError, match="has no texts: name a CLIP before it"):
        load_backbone(PEERS / "vit", device="cpu")
