"""What every backbone must do, whichever file it came from; a new kind joins by a row in makers.MAKERS."""

import json
from types import SimpleNamespace

import pytest
import torch
from makers import MAKERS, TEXTS, clip_model, openai_state
from transformers.image_processing_base import ImageProcessingMixin

from madclip.backbones import load_backbone
from madclip.errors import MadCLIPWarning, RecipeError

pytestmark = pytest.mark.filterwarnings("ignore::madclip.errors.MadCLIPWarning")


@pytest.fixture(scope="module", params=list(MAKERS))
def kind(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / request.param
    source, reference = MAKERS[request.param](folder)
    backbone = load_backbone(source, image_size=64, device="cpu")
    return SimpleNamespace(source=source, reference=reference, backbone=backbone, name=request.param)


def pixels(batch, height=64, width=64, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def token_rows(backbone, texts, length):
    """Padded ids [N, length] and end positions [N]."""
    rows = [[*backbone.start_ids, *ids, *backbone.end_ids] for ids in backbone.tokenize(texts)]
    padded = [row + [backbone.pad_id] * (length - len(row)) for row in rows]
    return torch.tensor(padded), torch.tensor([len(row) - 1 for row in rows])


def close(a, b, bound=1e-5):
    return float((a - b).abs().max()) <= bound * max(1.0, float(b.abs().max()))


class TestEveryBackbone:
    def test_spec_and_shapes(self, kind):
        b, spec = kind.backbone, kind.backbone.spec
        tokens = b.encode_image(pixels(2))
        assert b.image_size == (64, 64)
        assert b.grid == (64 // spec.patch_size, 64 // spec.patch_size)
        assert len(tokens) == len(spec.taps) == 4
        assert all(t.shape == (2, spec.prefix_tokens + b.grid[0] * b.grid[1], spec.width) for t in tokens)
        assert b.encode_text(TEXTS).shape == (3, spec.embed_dim)
        assert b.embed_tokens(torch.tensor([[0, 1]])).shape == (1, 2, spec.text_width)
        assert (b.device.type, b.dtype) == ("cpu", torch.float32)

    def test_taps_are_the_residual_stream_of_transformers(self, kind):
        if kind.reference is None:
            pytest.skip("the stand-in has no counterpart in transformers")
        x = pixels(2)
        with torch.no_grad():
            hidden = kind.reference.vision_model(x, output_hidden_states=True).hidden_states
        for tap, tokens in zip(kind.backbone.spec.taps, kind.backbone.encode_image(x), strict=True):
            assert close(tokens, hidden[tap]), tap

    def test_image_embedding_is_that_of_transformers(self, kind):
        if kind.reference is None:
            pytest.skip("the stand-in has no counterpart in transformers")
        x = pixels(2)
        with torch.no_grad():
            expected = kind.reference.get_image_features(x).pooler_output
        assert close(kind.backbone.embed_image(kind.backbone.encode_image(x)[-1]), expected)

    def test_a_window_of_all_patches_is_the_image(self, kind):
        b, x = kind.backbone, pixels(2)
        everything = torch.arange(b.grid[0] * b.grid[1])
        windows = torch.stack([everything, everything])
        for whole, seen in zip(b.encode_image(x), b.encode_image(x, windows=windows), strict=True):
            assert close(seen.unflatten(0, (2, 2)), whole[:, None].expand(-1, 2, -1, -1))

    def test_a_window_sees_nothing_else(self, kind):
        b, x = kind.backbone, pixels(1)
        other = x.clone()
        other[..., b.spec.patch_size :, :] += 1  # all but the first row of patches
        windows = torch.tensor([[0, 1]])
        first, second = (b.encode_image(image, windows=windows)[-1] for image in (x, other))
        assert first.shape == (1, b.spec.prefix_tokens + 2, b.spec.width)
        assert torch.equal(first, second)

    def test_what_is_put_back_at_a_tap_goes_on(self, kind):
        b, x = kind.backbone, pixels(1)
        plain = b.encode_image(x)
        same = b.encode_image(x, after_tap=lambda tap, stream: stream)
        assert all(torch.equal(one, other) for one, other in zip(plain, same, strict=True))
        added = torch.zeros(b.spec.width, requires_grad=True)
        changed = b.encode_image(x, after_tap=lambda tap, stream: stream + (tap == 1) * (1 + added))
        assert torch.equal(changed[0], plain[0])
        assert close(changed[1], plain[1] + 1)
        assert not close(changed[3], plain[3])
        changed[3].sum().backward()
        assert bool(added.grad.any())

    def test_text_is_that_of_transformers(self, kind):
        if kind.reference is None:
            pytest.skip("the stand-in has no counterpart in transformers")
        ids, _ = token_rows(kind.backbone, TEXTS, kind.backbone.spec.text_length)
        with torch.no_grad():
            expected = kind.reference.get_text_features(ids).pooler_output
        assert close(kind.backbone.encode_text(TEXTS), expected)

    def test_embeddings_give_what_the_text_gives(self, kind):
        b = kind.backbone
        ids, end = token_rows(b, TEXTS, b.spec.text_length)
        assert close(b.encode_embeddings(b.embed_tokens(ids), end), b.encode_text(TEXTS))

    def test_cut_after_the_longest_is_exact_where_padding_is_not_read(self, kind):
        b = kind.backbone
        ids, end = token_rows(b, TEXTS, b.spec.text_length)
        short = int(end.max()) + 1
        if not b.spec.reads_padding:
            whole = b.encode_embeddings(b.embed_tokens(ids), end)
            assert close(b.encode_embeddings(b.embed_tokens(ids[:, :short]), end), whole)
        else:
            with pytest.raises(RecipeError, match="positions"):
                b.encode_embeddings(b.embed_tokens(ids[:, :short]), end)

    def test_full_attention_lets_every_position_see_every_other(self, kind):
        b = kind.backbone
        ids, end = token_rows(b, TEXTS, b.spec.text_length)
        native, full = (b.encode_embeddings(b.embed_tokens(ids), end, attention=a) for a in ("native", "full"))
        assert close(native, full) is b.spec.reads_padding

    def test_gradients_flow_to_embeddings_and_nowhere_else(self, kind):
        b = kind.backbone
        ids, end = token_rows(b, TEXTS, b.spec.text_length)
        embeddings = b.embed_tokens(ids).clone().requires_grad_()
        b.encode_embeddings(embeddings, end).square().sum().backward()
        assert embeddings.grad is not None
        assert float(embeddings.grad.abs().sum()) > 0
        assert not any(p.requires_grad or p.grad is not None for p in b.parameters())
        assert not b.encode_image(pixels(1))[0].requires_grad

    def test_batch_of_one_equals_batch_of_many(self, kind):
        x = pixels(3)
        many = kind.backbone.encode_image(x)
        for i in range(3):
            for one, all_ in zip(kind.backbone.encode_image(x[i : i + 1]), many, strict=True):
                assert close(one[0], all_[i])
        texts = kind.backbone.encode_text(TEXTS)
        assert close(kind.backbone.encode_text(TEXTS[2:]), texts[2:])

    @pytest.mark.parametrize("size", [(96, 96), (48, 80), (71, 50), 16, 33])
    def test_any_size(self, kind, size):
        b = load_backbone(kind.source, image_size=size, device="cpu")
        height, width = b.image_size
        tokens = b.encode_image(pixels(1, height, width))
        assert b.grid == (height // 16, width // 16)
        assert tokens[0].shape[1] == b.spec.prefix_tokens + b.grid[0] * b.grid[1]
        assert b.fingerprint == kind.backbone.fingerprint

    def test_only_whole_patches_are_seen(self, kind):
        b = load_backbone(kind.source, image_size=(71, 50), device="cpu")
        x = pixels(1, 71, 50)
        y = x.clone()
        y[:, :, 64:], y[:, :, :, 48:] = 9.0, 9.0
        assert all(torch.equal(p, q) for p, q in zip(b.encode_image(x), b.encode_image(y), strict=True))

    def test_other_pixels_are_refused(self, kind):
        with pytest.raises(RecipeError, match=r"\[1, 3, 60, 64\]"):
            kind.backbone.encode_image(pixels(1, 60))

    def test_bfloat16_is_near(self, kind):
        b = load_backbone(kind.source, image_size=64, device="cpu", dtype="bfloat16")
        assert b.dtype == torch.bfloat16
        assert b.fingerprint == kind.backbone.fingerprint
        for half, whole in zip(b.encode_image(pixels(2)), kind.backbone.encode_image(pixels(2)), strict=True):
            assert half.dtype == torch.bfloat16
            assert torch.nn.functional.cosine_similarity(half.float(), whole, dim=-1).min() > 0.99
        assert b.encode_text(TEXTS).dtype == torch.bfloat16

    def test_activation_override(self, kind):
        other = "gelu" if kind.backbone.spec.activation == "quick_gelu" else "quick_gelu"
        b = load_backbone(kind.source, image_size=64, activation=other, device="cpu")
        assert b.spec.activation == other
        assert b.fingerprint != kind.backbone.fingerprint
        assert not close(b.encode_image(pixels(1))[-1], kind.backbone.encode_image(pixels(1))[-1])
        assert not close(b.encode_text(TEXTS), kind.backbone.encode_text(TEXTS))

    def test_too_long_a_text(self, kind):
        with pytest.raises(RecipeError, match=rf"tokens, the tower takes {kind.backbone.spec.text_length}"):
            kind.backbone.encode_text(["x", "brain " * 100])

    def test_no_text(self, kind):
        assert kind.backbone.encode_text([]).shape == (0, kind.backbone.spec.embed_dim)

    def test_stays_in_evaluation_mode(self, kind):
        assert not any(module.training for module in kind.backbone.train().modules())

    def test_exports_with_any_batch(self, kind):
        class Tokens(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.backbone = kind.backbone

            def forward(self, x):
                return self.backbone.encode_image(x)

        program = torch.export.export(Tokens(), (pixels(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        exported = program.module()(pixels(3))
        assert all(close(a, b) for a, b in zip(exported, kind.backbone.encode_image(pixels(3)), strict=True))


def test_the_same_weights_have_one_fingerprint(tmp_path):
    names = ["clip_folder", "clip_bin_folder", "clip_sharded", "openai_file", "open_clip_training"]
    loaded = [load_backbone(MAKERS[name](tmp_path / name)[0], image_size=64, device="cpu") for name in names]
    assert len({b.fingerprint for b in loaded}) == 1
    state = openai_state(clip_model())
    state["visual.proj"][0, 0] += 1e-6
    torch.save(state, tmp_path / "other.pt")
    assert load_backbone(tmp_path / "other.pt", device="cpu").fingerprint != loaded[0].fingerprint


def test_half_precision_files_are_read_exactly(tmp_path):
    state = {name: tensor.half() for name, tensor in openai_state(clip_model()).items()}
    torch.save(state, tmp_path / "half.pt")
    clip_model().half().save_pretrained(tmp_path / "folder")
    torch.save({name: tensor.float() for name, tensor in state.items()}, tmp_path / "whole.pt")
    half, whole = (load_backbone(tmp_path / f"{n}.pt", image_size=64, device="cpu") for n in ("half", "whole"))
    folder = load_backbone(tmp_path / "folder", image_size=64, device="cpu")
    assert half.dtype == folder.dtype == torch.float32
    assert half.fingerprint == whole.fingerprint == folder.fingerprint
    for other in (half, folder):
        assert torch.equal(other.encode_image(pixels(1))[-1], whole.encode_image(pixels(1))[-1])
        assert torch.equal(other.encode_text(TEXTS), whole.encode_text(TEXTS))


def test_the_stand_in_is_the_same_every_time_and_says_what_it_is():
    a, b = load_backbone("stand-in", device="cpu"), load_backbone("stand-in", device="cpu")
    assert a.fingerprint == b.fingerprint
    assert a.spec.id == a.spec.source == "stand-in"
    assert (a.spec.depth, a.spec.width, a.spec.text_width, a.spec.embed_dim) == (12, 192, 128, 128)
    assert a.spec.taps == (3, 6, 9, 12)


def test_normalisation_comes_from_the_files(tmp_path):
    folder, _ = MAKERS["open_clip_safetensors"](tmp_path / "oc")
    assert load_backbone(folder, device="cpu").spec.mean == (0.1, 0.2, 0.3)
    folder, _ = MAKERS["siglip_folder"](tmp_path / "sig")
    assert load_backbone(folder, device="cpu").spec.std == (0.27, 0.26, 0.28)


@pytest.mark.parametrize(
    ("files", "mean"),
    [
        ({"preprocessor_config.json": 0.1}, 0.1),
        ({"processor_config.json": 0.2}, 0.2),
        ({"preprocessor_config.json": 0.1, "processor_config.json": 0.2}, 0.2),
    ],
)
def test_image_settings_of_either_version_of_transformers(tmp_path, files, mean, recwarn):
    """Transformers' own order is the oracle: a processor_config.json with image settings goes before the other file."""
    folder, _ = MAKERS["clip_folder"](tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    for name, value in files.items():
        settings = {"image_mean": [value] * 3, "image_std": [0.5] * 3}
        nested = {"image_processor": settings} if name == "processor_config.json" else settings
        (folder / name).write_text(json.dumps(nested))
    theirs, _ = ImageProcessingMixin.get_image_processor_dict(folder)
    assert load_backbone(folder, device="cpu").spec.mean == tuple(theirs["image_mean"]) == (mean,) * 3
    assert not recwarn.list


def test_a_processor_without_image_settings_leaves_them_to_the_other_file(tmp_path):
    folder, _ = MAKERS["clip_folder"](tmp_path / "clip")
    (folder / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert load_backbone(folder, device="cpu").spec.mean == (0.48, 0.46, 0.41)


@pytest.mark.parametrize(
    ("family", "mean"), [("clip_folder", "0.481, 0.458, 0.408"), ("siglip_folder", "0.5, 0.5, 0.5")]
)
def test_assumed_normalisation_is_said(tmp_path, family, mean):
    folder, _ = MAKERS[family](tmp_path / family)
    for file in folder.glob("*processor_config.json"):
        file.unlink()
    with pytest.warns(MadCLIPWarning, match=rf"does not say how its pixels were normalised: mean \({mean}\)"):
        load_backbone(folder, device="cpu")
