"""What a config.json leaves out, and what it must not say; transformers' own classes are the oracle."""

import subprocess
import sys

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from madclip.backbones import clip, siglip
from madclip.backbones.configuration import DEFAULTS
from madclip.backbones.modules import weight_shapes

FAMILIES = {"clip": (clip, CLIPConfig, CLIPModel), "siglip": (siglip, SiglipConfig, SiglipModel)}


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


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({}, {}),
        ({"image_size": 97, "patch_size": 8}, {"vocab_size": 7, "intermediate_size": 5}),
        ({}, {"projection_size": 9}),
    ],
)
def test_tensors_are_those_of_transformers(family, vision, text):
    module, configuration, model = FAMILIES[family]
    config = {"model_type": family, "vision_config": vision, "text_config": text}
    with torch.device("meta"):
        theirs = model(configuration.from_dict(config)).state_dict()
    assert weight_shapes(module.empty_model(config)) == {name: tensor.shape for name, tensor in theirs.items()}


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
    config = {"vision_config": {}, "text_config": {}} | {tower: change}
    with pytest.raises(ValueError, match=match):
        FAMILIES[family][0].empty_model(config)


def test_models_that_cannot_be():
    for vision, match in (({"image_size": [224, 224]}, "image_size"), ({"image_size": 8}, "less than a patch of 32")):
        with pytest.raises(ValueError, match=match):
            clip.empty_model({"vision_config": vision, "text_config": {}})
    with pytest.raises(ValueError, match="shared space should be a count, not None"):
        clip.empty_model({"projection_dim": None, "vision_config": {}, "text_config": {}})
    with pytest.raises(ValueError, match="shared space should be a count, not 0"):
        siglip.empty_model({"vision_config": {}, "text_config": {"projection_size": 0}})


def test_the_towers_run_without_transformers_and_the_compiler():
    """Importing them takes longer than everything else that a first prediction does."""
    code = "import sys, torch; from madclip.backbones import load_backbone; b = load_backbone('tiny', image_size=48); "
    code += "b.encode_image(torch.zeros(1, 3, 48, 48)); b.encode_text(['x']); "
    code += "from madclip.backbones.siglip import empty_model; empty_model({'vision_config': {}, 'text_config': {}}); "
    code += "assert not {'transformers', 'torch._dynamo', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
