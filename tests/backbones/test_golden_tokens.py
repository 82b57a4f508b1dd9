"""The released implementation's values: positions, tokens at the taps and text embeddings, from both kinds of file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from madclip.backbones import load_backbone
from madclip.backbones.openai_format import to_hugging_face
from madclip.backbones.towers import resize_positions

GOLDEN = Path(__file__).parents[1] / "golden"
import weights  # noqa: E402

BOUND = 1e-4


def relative(found, expected):
    return float(np.abs(found.numpy() - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "released_public.npz")


@pytest.fixture(scope="module", params=["openai", "huggingface"])
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    state = {n: torch.from_numpy(np.asarray(weights.clip_tensor(n, s))) for n, s in weights.clip_shapes().items()}
    if request.param == "openai":
        torch.save(state, folder / "toy.pt")
        return folder / "toy.pt"
    v, t = weights.VISION, weights.TEXT
    sizes = {"hidden_act": "quick_gelu", "projection_dim": weights.EMBED_DIM}
    vision = sizes | {"hidden_size": v["width"], "intermediate_size": 4 * v["width"], "num_hidden_layers": v["layers"]}
    vision |= {"num_attention_heads": v["heads"], "patch_size": v["patch_size"], "image_size": v["image_size"]}
    text = sizes | {"hidden_size": t["width"], "intermediate_size": 4 * t["width"], "num_hidden_layers": t["layers"]}
    text |= {"num_attention_heads": t["heads"], "max_position_embeddings": t["context_length"]}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=weights.EMBED_DIM))
    model.load_state_dict(to_hugging_face(state))
    model.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::madclip.errors.MadCLIPWarning")
@pytest.mark.parametrize(("activation", "key"), [("gelu", "gelu"), (None, "quickgelu"), ("quick_gelu", "quickgelu")])
def test_tokens_and_text(golden, source, activation, key):
    backbone = load_backbone(source, image_size=56, activation=activation, device="cpu")
    assert backbone.spec.taps == (6, 12, 18, 24)
    tokens = backbone.encode_image(torch.from_numpy(golden["image"]))
    for tap, found in zip(backbone.spec.taps, tokens, strict=True):
        assert relative(found, golden[f"{key}/tokens/{tap}"]) < BOUND
    texts = [str(text) for text in golden["texts"]]
    assert relative(backbone.encode_text(texts), golden[f"{key}/text_causal"]) < BOUND


def test_positions(golden):
    table = weights.clip_tensor("visual.positional_embedding", (37, 128))
    assert relative(resize_positions(torch.from_numpy(table), 1, (4, 4)), golden["pos_embed_resized"]) < BOUND


def test_positions_of_the_same_grid_are_untouched():
    table = torch.randn(37, 8)
    assert resize_positions(table, 1, (6, 6)) is table


def test_positions_of_a_wide_grid_follow_the_table():
    table = torch.arange(36.0).reshape(36, 1)
    wide = resize_positions(table, 0, (6, 12)).reshape(6, 12)
    assert torch.all(wide.diff(dim=1) >= 0)
    assert torch.allclose(wide.mean(), table.mean())
    # 36 positions over 12 columns: each pair of columns averages to the column it came from, away from the edges
    assert torch.allclose(wide.reshape(6, 6, 2).mean(-1)[:, 2:4], table.reshape(6, 6)[:, 2:4], atol=1e-4)
