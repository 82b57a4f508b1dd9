"""Files that timm, open_clip and transformers wrote (tools/peer_towers.py), against what these computed from them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from madclip.backbones import hub, load_backbone
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


OPEN_CLIP = sorted(folder.name for folder in PEERS.glob("open-clip-*"))
TEXTS = ["A photo of a brain.", "damaged retinal_OCT, with flaw", "x"]


@pytest.fixture(scope="module", params=OPEN_CLIP)
def clip(request):
    return load_backbone(PEERS / request.param, image_size=16, device="cpu"), expected(request.param)


def padded(backbone, texts):
    rows = [[*backbone.start_ids, *ids, *backbone.end_ids] for ids in backbone.tokenize(texts)]
    ids = torch.tensor([row + [backbone.pad_id] * (backbone.spec.text_length - len(row)) for row in rows])
    return ids, torch.tensor([len(row) - 1 for row in rows])


class TestOpenClip:
    def test_taps_and_image_embeddings(self, clip):
        backbone, values = clip
        streams = backbone.encode_image(torch.from_numpy(values["pixels"]).float())
        for i, stream in enumerate(streams):
            assert relative(stream, values[f"tokens{i}"]) < BOUND
        assert relative(backbone.embed_image(streams[-1]), values["image"]) < BOUND

    def test_token_ids(self, clip):
        assert padded(clip[0], TEXTS)[0].tolist() == clip[1]["ids"].tolist()

    def test_texts(self, clip):
        assert relative(clip[0].encode_text(TEXTS), clip[1]["text"]) < BOUND

    def test_texts_from_embeddings_on(self, clip):
        """At full length and, where padding is not read, cut after the longest: learned prompts come this way."""
        backbone, values = clip
        ids, end = padded(backbone, TEXTS)
        for length in (backbone.spec.text_length, int(end.max()) + 1):
            if length < backbone.spec.text_length and backbone.spec.reads_padding:
                continue
            embeddings = backbone.embed_tokens(ids[:, :length]).clone().requires_grad_()
            found = backbone.encode_embeddings(embeddings, end)
            found.square().sum().backward()
            assert relative(found.detach(), values["text"]) < BOUND
            assert bool(embeddings.grad.any())
        assert not any(p.requires_grad for p in backbone.parameters())

    def test_full_attention_reads_padding(self, clip):
        ids, end = padded(clip[0], TEXTS)
        full = clip[0].encode_embeddings(clip[0].embed_tokens(ids), end, attention="full")
        assert (relative(full, clip[1]["text"]) < BOUND) is clip[0].spec.reads_padding

    def test_another_size(self, clip):
        other = load_backbone(clip[0].spec.source, image_size=24, device="cpu")
        assert other.encode_image(torch.zeros(1, 3, 24, 24))[0].shape[1] == other.spec.prefix_tokens + 36
        assert other.fingerprint == clip[0].fingerprint


def test_facts_of_open_clip_files():
    specs = {name: load_backbone(PEERS / name, device="cpu").spec for name in OPEN_CLIP}
    assert {n: s.prefix_tokens for n, s in specs.items()} == dict(zip(OPEN_CLIP, (1, 1, 0, 0), strict=True))
    assert {n: s.reads_padding for n, s in specs.items()} == dict(
        zip(OPEN_CLIP, (False, False, True, True), strict=True)
    )
    assert specs["open-clip-siglip"].text_length == 12
    assert specs["open-clip-biomed"].mean == (0.5, 0.5, 0.5)


def test_the_activation_of_texts_is_in_the_fingerprint(copy):
    """Two files of the same weights, one for exact GELU in the text tower and one for its approximation by tanh."""
    folder = copy("open-clip-siglip", lambda c: c["model_cfg"]["text_cfg"].update(act_kwargs={"approximate": "tanh"}))
    changed, plain = (load_backbone(f, device="cpu") for f in (folder, PEERS / "open-clip-siglip"))
    assert changed.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("name", "section", "change", "match"),
    [
        ("siglip", "text_cfg", {"no_causal_mask": False}, "no_causal_mask False, and only True"),
        ("siglip", "text_cfg", {"pool_type": "argmax"}, "pool_type 'argmax'"),
        ("siglip", "text_cfg", {"heads": 5}, "5 attention heads do not fit"),
        ("siglip", "vision_cfg", {"timm_model_name": "convnext_base"}, "'convnext_base' is no plain vision"),
        ("siglip", "vision_cfg", {"timm_model_name": None}, "'None' is no plain vision"),
        ("biomed", "text_cfg", {"hf_pooler_type": "mean_pooler"}, "hf_pooler_type 'mean_pooler'"),
        ("biomed", "text_cfg", {"hf_proj_type": "linear"}, "hf_proj_type 'linear'"),
        ("biomed", "text_cfg", {"context_length": 900}, "context_length should be 2 to 20, not 900"),
    ],
)
def test_configurations_of_open_clip_that_cannot_be_read(copy, name, section, change, match):
    refused(copy(f"open-clip-{name}", lambda c: c["model_cfg"][section].update(change)), match)


@pytest.mark.parametrize(
    ("name", "weights", "match"),
    [
        ("siglip", lambda s: s.pop("visual.trunk.attn_pool.kv.weight"), "no usable visual.trunk.attn_pool.kv.weight"),
        ("siglip", lambda s: s.pop("visual.trunk.attn_pool.kv.bias"), "missing: .*head.attention.in_proj_bias"),
        (
            "siglip",
            lambda s: s.update({"visual.trunk.attn_pool.q.weight": torch.zeros(24, 9)}),
            "missing: .*in_proj_weight",
        ),
        ("siglip", lambda s: s.pop("text.ln_final.bias"), "missing: text_model.final_layer_norm.bias"),
        (
            "siglip",
            lambda s: s.update({"visual.trunk.cls_token": torch.zeros(1, 1, 24)}),
            "with a class token beside this",
        ),
        ("siglip", lambda s: s.update({"text_decoder.x": torch.zeros(1)}), "is a CoCa, as CONCH is"),
        ("biomed", lambda s: s.pop("visual.head.proj.weight"), "no usable visual.head.proj.weight"),
        ("biomed", lambda s: s.pop("text.proj.0.weight"), "missing: text_projection.0.weight"),
        ("biomed", lambda s: s.update({"visual.trunk.blocks.0.ls1.gamma": torch.ones(24)}), "with layer scale beside"),
        (
            "biomed",
            lambda s: s.update({"text.transformer.extra": torch.ones(1)}),
            "not part of the model: transformer.ex",
        ),
    ],
)
def test_weights_of_open_clip_that_cannot_be_read(copy, name, weights, match):
    refused(copy(f"open-clip-{name}", weights=weights), match)


def test_a_tower_of_timm_needs_its_configuration(copy):
    folder = copy("open-clip-siglip")
    (folder / "open_clip_config.json").unlink()
    refused(folder, "has a tower of timm: put the model's open_clip_config.json beside it")


def test_of_two_forms_in_one_folder_the_one_with_texts_is_read(copy):
    """As hubs hold them: open_clip's model, and beside it its image tower alone as timm's."""
    folder = copy("open-clip-siglip")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(PEERS / "vit" / name, folder / name)
    assert load_backbone(folder, device="cpu").spec.embed_dim == 24
    files = ["config.json", "model.safetensors", "open_clip_config.json", "open_clip_model.safetensors"]
    assert "open_clip_model.safetensors" in hub._choose("someone/model", files)
    assert "model.safetensors" not in hub._choose("someone/model", files)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("open-clip-biomed", "has no tokenizer: put the model's tokenizer.json or vocab.txt there"),
        ("open-clip-siglip2", "has no tokenizer: put the model's tokenizer.json or spiece.model there"),
    ],
)
def test_texts_without_a_tokenizer(copy, name, match):
    folder = copy(name)
    (folder / "tokenizer.json").unlink()
    backbone = load_backbone(folder, image_size=16, device="cpu")
    with pytest.raises(CheckpointError, match=match) as caught:
        backbone.encode_text(["x"])
    assert "\n" not in str(caught.value)


def test_clips_own_vocabulary_is_not_taken_for_another(copy):
    """A MetaCLIP 2 whose tokenizer was left behind knows more words than CLIP's tokenizer."""
    folder = copy(
        "open-clip-metaclip2", weights=lambda s: s.update({"token_embedding.weight": torch.zeros(50000, 16).half()})
    )
    (folder / "tokenizer.json").unlink()
    backbone = load_backbone(folder, image_size=16, device="cpu")
    with pytest.raises(CheckpointError, match="knows 50000 ids, CLIP's own tokenizer has 49408"):
        backbone.encode_text(["x"])


def test_word_pieces_from_a_list_are_those_of_the_tokenizer(copy):
    """vocab.txt alone, as BERT was first published, gives the ids that tokenizer.json gives."""
    folder = copy("open-clip-biomed")
    whole = load_backbone(folder, image_size=16, device="cpu").tokenize(TEXTS)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    assert load_backbone(folder, image_size=16, device="cpu").tokenize(TEXTS) == whole
