"""What a config.json leaves out, and what it must not say; transformers' own classes are the oracle."""

import subprocess
import sys

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from madclip.backbones.clip import ClipModel as OurClip
from madclip.backbones.configuration import DEFAULTS, read_config
from madclip.backbones.modules import weight_shapes
from madclip.backbones.siglip import SiglipModel as OurSiglip

FAMILIES = {"clip": (OurClip, CLIPConfig, CLIPModel), "siglip": (OurSiglip, SiglipConfig, SiglipModel)}
SIZES = [
    ({}, {}),
    ({"image_size": 97, "patch_size": 8}, {"vocab_size": 7, "intermediate_size": 5}),
    ({}, {"projection_size": 9}),
]


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return request.param


def test_defaults_are_those_of_transformers(family):
    theirs = FAMILIES[family][1]().to_dict()
    for name, value in DEFAULTS[family].items():
        if isinstance(value, dict):
            assert value == {key: theirs[name][key] for key in value}
        else:
            assert value == theirs[name]


def given(family, vision, text):
    return {"model_type": family, "vision_config": vision, "text_config": text}


@pytest.mark.parametrize(("vision", "text"), SIZES)
def test_tensors_are_those_of_transformers(family, vision, text):
    ours, configuration, model = FAMILIES[family]
    config = given(family, vision, text)
    with torch.device("meta"):
        theirs = model(configuration.from_dict(config)).state_dict()
        found = weight_shapes(ours(read_config(family, config)))
    assert found == {name: tensor.shape for name, tensor in theirs.items()}


@pytest.mark.parametrize(("vision", "text"), SIZES)
def test_what_is_written_is_read_again_and_by_transformers(family, vision, text):
    config = read_config(family, given(family, vision, text))
    written = config.to_json()
    assert read_config(family, written) == config
    theirs = FAMILIES[family][1].from_dict(written).to_dict()
    for tower in ("vision_config", "text_config"):
        assert {key: theirs[tower][key] for key in written[tower]} == written[tower]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden_size": "768"}, "hidden_size should be a count, not '768'"),
        ({"intermediate_size": 1.5}, "intermediate_size should be a count"),
        ({"num_hidden_layers": None}, "num_hidden_layers should be a count"),
        ({"num_attention_heads": True}, "num_attention_heads should be a count"),
        ({"num_attention_heads": 7}, "7 attention heads do not fit a hidden_size of"),
        ({"hidden_size": 10**30}, "hidden_size should be a count"),
        ({"layer_norm_eps": 0}, "layer_norm_eps should be a small number above 0, not 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps should be a small number"),
    ],
)
@pytest.mark.parametrize("tower", ["vision_config", "text_config"])
def test_towers_that_cannot_be(family, tower, change, match):
    with pytest.raises(ValueError, match=match):
        read_config(family, {"vision_config": {}, "text_config": {}} | {tower: change})


def test_models_that_cannot_be():
    for vision, match in (({"image_size": [224, 224]}, "image_size"), ({"image_size": 8}, "less than a patch of 32")):
        with pytest.raises(ValueError, match=match):
            read_config("clip", given("clip", vision, {}))
    with pytest.raises(ValueError, match="shared space should be a count, not None"):
        read_config("clip", {"projection_dim": None} | given("clip", {}, {}))
    with pytest.raises(ValueError, match="shared space should be a count, not 0"):
        read_config("siglip", given("siglip", {}, {"projection_size": 0}))


def test_the_towers_run_without_transformers_and_the_compiler():
    """Importing them takes longer than everything else that a first prediction does."""
    code = """
import sys, torch
from madclip.backbones import load_backbone
from madclip.backbones.configuration import read_config
from madclip.backbones.siglip import SiglipModel
backbone = load_backbone("tiny", image_size=48)
backbone.encode_image(torch.zeros(1, 3, 48, 48))
backbone.encode_text(["x"])
with torch.device("meta"):
    SiglipModel(read_config("siglip", {"vision_config": {}, "text_config": {}}))
assert not {"transformers", "torch._dynamo", "scipy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
