"""What a user may hand over by mistake or in malice: one clear line each, and nothing of it is ever run."""

import hashlib
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from makers import MAKERS, clip_model, openai_state
from safetensors.torch import load_file, save_file

from madclip.backbones import checkpoints, load_backbone
from madclip.errors import CheckpointError, MadCLIPWarning, RecipeError

pytestmark = pytest.mark.filterwarnings("ignore::madclip.errors.MadCLIPWarning")


@pytest.fixture(scope="module")
def state():
    return openai_state(clip_model())


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory):
    return MAKERS["clip_folder"](tmp_path_factory.mktemp("good") / "clip")[0]


@pytest.fixture
def folder(good_folder, tmp_path):
    return Path(shutil.copytree(good_folder, tmp_path / "clip"))


def refused(source, match, kind=CheckpointError, **options):
    with pytest.raises(kind, match=match) as caught:
        load_backbone(source, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(path, content):
    torch.save(content, path)
    return path


class Trap:
    """Leaves a file behind when a pickle that holds it is run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_empty_file(tmp_path):
    for name in ("clip.pt", "clip.safetensors"):
        (tmp_path / name).touch()
        refused(tmp_path / name, f"{name} is empty")


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_cut_short(tmp_path, state, keep):
    whole = saved(tmp_path / "whole.pt", state).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * keep)])
    refused(tmp_path / "cut.pt", r"cut\.pt.*download it again")
    save_file(state, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: int(len(whole) * keep)])
    refused(tmp_path / "cut.safetensors", r"cut\.safetensors.*download it again")


@pytest.mark.parametrize(
    "junk", [b"hello world", b"\x80\x02junk", b"PK\x03\x04" + b"\0" * 100, b"<html>404</html>" * 99]
)
def test_not_weights_at_all(tmp_path, junk):
    for name in ("junk.pt", "junk.bin", "junk.safetensors"):
        (tmp_path / name).write_bytes(junk)
        refused(tmp_path / name, f"{name} is not a sound")


def test_damaged_in_the_middle(tmp_path, state):
    path = saved(tmp_path / "clip.pt", state)
    content = bytearray(path.read_bytes())
    start = content.index(b"visual.proj")
    content[start - 40 : start + 40] = b"\xff" * 80
    path.write_bytes(bytes(content))
    refused(path, "clip.pt")


def test_a_pickle_that_would_run_code_is_not_run(tmp_path, state):
    mark = tmp_path / "ran"
    refused(saved(tmp_path / "zip.pt", state | {"x": Trap(mark)}), "could run code, and was not loaded")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"x": Trap(mark)}))
    refused(tmp_path / "bare.pt", "could run code, and was not loaded|not a sound")
    torch.save({"x": Trap(mark)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.bin", "could run code, and was not loaded")
    assert not mark.exists()


class Program(torch.nn.Module):
    def __init__(self, state):
        super().__init__()
        self.names = {}
        for i, (name, tensor) in enumerate(state.items()):
            self.names[f"t{i}"] = name
            self.register_buffer(f"t{i}", tensor)

    def forward(self, x):
        return x


def test_torchscript_only_with_a_published_hash(tmp_path, state, monkeypatch):
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("the program was opened"))
    refused(path, "TorchScript program and its SHA-256 .* none of OpenAI's")


def test_torchscript_with_a_published_hash_is_read(tmp_path, state, monkeypatch):
    tree = torch.nn.Module()
    for name, tensor in state.items():
        *parents, leaf = name.split(".")
        node = tree
        for part in parents:
            if not hasattr(node, part):
                node.add_module(part, torch.nn.Module())
            node = getattr(node, part)
        node.register_buffer(leaf, tensor)
    path = tmp_path / "clip.pt"
    torch.jit.script(tree).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(checkpoints.OPENAI_SHA256, digest, "clip-vit-b-32")
    program = load_backbone(path, image_size=64, device="cpu")
    plain = load_backbone(saved(tmp_path / "plain.pt", state), image_size=64, device="cpu")
    assert program.fingerprint == plain.fingerprint
    assert (program.spec.licence, program.spec.activation) == ("MIT", "quick_gelu")
    assert plain.spec.licence == "unknown"


def test_compressed_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    refused(tmp_path / "bomb.pt", "compressed archive")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("ln_final.bias"), r"missing: text_model\.final_layer_norm\.bias"),
        (lambda s: s.pop("visual.conv1.weight"), r"missing: visual\.conv1\.weight"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), r"not part of the model: extra\.weight"),
        (
            lambda s: s.update({"visual.proj": torch.zeros(128, 41)}),
            r"text_projection\.weight is \[40, 64\], expected \[41, 64\]",
        ),
        (
            lambda s: s.update({"visual.transformer.resblocks.2.ln_1.bias": torch.zeros(64)}),
            r"vision_model\.encoder\.layers\.2\.layer_norm1\.bias is \[64\], expected \[128\]",
        ),
        (
            lambda s: s.update({"ln_final.bias": torch.zeros(64).long()}),
            r"not plain floating-point values: text_model\.final_layer_norm\.bias",
        ),
        (
            lambda s: s.update({"token_embedding.weight": torch.zeros(1, 64).expand(10**6, 64)}),
            r"not plain floating-point values: text_model\.embeddings\.token_embedding\.weight",
        ),
        (lambda s: s["ln_final.bias"].fill_(float("nan")), "not finite"),
        (lambda s: s.update({"visual.positional_embedding": torch.zeros(16, 128)}), "16 vision positions"),
        (lambda s: s.update({"visual.conv1.weight": torch.zeros(128, 3)}), r"impossible shape \[128, 3\]"),
        (lambda s: s.update({"visual.layer1.0.conv1.weight": torch.zeros(1)}), "ResNet"),
        (lambda s: s.clear(), "not a CLIP"),
    ],
)
def test_wrong_tensors(tmp_path, state, change, match):
    broken = {name: tensor.clone() for name, tensor in state.items()}
    change(broken)
    message = refused(saved(tmp_path / "broken.pt", broken), match)
    assert "broken.pt" in message


def test_many_missing_are_summed_up(tmp_path, state):
    few = {name: tensor for name, tensor in state.items() if not name.startswith("visual.transformer.resblocks.1.")}
    refused(saved(tmp_path / "few.pt", few), r"missing: .*layer_norm1\.weight, .* and 13 more")


def test_not_a_dict(tmp_path, state):
    refused(saved(tmp_path / "list.pt", list(state.values())), "holds a list")
    refused(saved(tmp_path / "nested.pt", {"state_dict": torch.zeros(1)}), "not a CLIP")


def test_wrong_shape_in_a_folder(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"] = torch.zeros(39, 128)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, r"visual_projection\.weight is \[39, 128\], expected \[40, 128\]")


def test_missing_in_a_folder(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, folder / "model.safetensors")
    refused(folder, r"missing: text_projection\.weight")


def test_empty_folder(tmp_path):
    refused(tmp_path, "holds no weights: expected config.json with model.safetensors")


def test_folder_without_config(folder):
    (folder / "config.json").unlink()
    refused(folder, "no config.json")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.update(model_type="bert"), "of type 'bert'"),
        (lambda c: c.pop("vision_config"), "no vision_config"),
        (lambda c: c.update(text_config=[]), "no text_config"),
        (lambda c: c["vision_config"].update(hidden_act="relu"), "activations 'relu'"),
        (lambda c: c["vision_config"].update(num_attention_heads="two"), "makes no model"),
        (lambda c: c["vision_config"].update(num_attention_heads=0), "makes no model"),
        (lambda c: c["vision_config"].update(num_hidden_layers=10**9), "asks for 1000000000 blocks"),
        (lambda c: c["text_config"].update(num_hidden_layers=0), "asks for 0 blocks"),
        (lambda c: c["vision_config"].update(hidden_size=-4), "makes no model"),
        (lambda c: c["vision_config"].update(num_hidden_layers=5), "missing: vision_model.encoder.layers.4"),
        (lambda c: c["vision_config"].update(patch_size=8), "wrong shape"),
        (lambda c: (c.update(model_type="siglip2"), c["vision_config"].update(num_patches=256)), "NaFlex"),
    ],
)
def test_wrong_config(folder, change, match):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, match)


def test_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    refused(folder, r"config\.json is not JSON")
    (folder / "config.json").write_text("[]")
    refused(folder, "not a JSON object")
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    refused(folder, "is not JSON")


def test_heads_that_change_nothing_in_shape_still_must_fit(folder):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_attention_heads"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "128")


def test_shards(tmp_path):
    folder, _ = MAKERS["clip_sharded"](tmp_path / "sharded")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    content["weight_map"][first] = "../outside.safetensors"
    save_file({first: torch.zeros(1)}, tmp_path / "outside.safetensors")
    index.write_text(json.dumps(content))
    refused(folder, "not beside it")
    content["weight_map"][first] = "model-00009-of-00009.safetensors"
    index.write_text(json.dumps(content))
    refused(folder, "not beside it")


def test_wrong_normalisation(folder):
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    refused(folder, "image_mean should be three numbers")
    (folder / "processor_config.json").write_text('{"image_processor": {"image_std": ["a", 1, 1]}}')
    refused(folder, "processor_config.json: image_std should be three numbers")
    (folder / "processor_config.json").write_text('{"image_processor": 3}')
    refused(folder, "image_processor should be an object, not 3")


def test_open_clip_config_that_does_not_fit(tmp_path):
    folder, _ = MAKERS["open_clip_safetensors"](tmp_path / "oc")
    config = folder / "open_clip_config.json"
    for broken, match in (
        ({"model_cfg": {"vision_cfg": {"head_width": 0}}}, "head_width should be a count, not 0"),
        ({"model_cfg": {"text_cfg": {"heads": 7}}}, "7 attention heads do not fit"),
        ({"model_cfg": 3}, "model_cfg should be an object"),
    ):
        config.write_text(json.dumps(broken))
        refused(folder, match)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("model.safetensors", "gelu"),
        ("ViT-L-14-quickgelu-dfn2b.safetensors", "quick_gelu"),
        ("vit_b_32_quickgelu.bin", "quick_gelu"),
        ("ViT-B-32-openai.safetensors", "quick_gelu"),
        ("plain.pt", "quick_gelu"),
        ("wrapped.pt", "gelu"),
    ],
)
def test_a_guessed_activation_is_said_each_time(tmp_path, state, name, taken, recwarn):
    if name.endswith("safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save({"state_dict": state} if name == "wrapped.pt" else state, tmp_path / name)
    other = "gelu" if taken == "quick_gelu" else "quick_gelu"
    with pytest.warns(MadCLIPWarning, match=f"{name} .*{taken} was guessed.*--set backbone_activation={other}"):
        assert load_backbone(tmp_path / name, device="cpu").spec.activation == taken
    recwarn.clear()
    assert load_backbone(tmp_path / name, device="cpu", activation=other).spec.activation == other
    assert not any(isinstance(one.message, MadCLIPWarning) for one in recwarn)


@pytest.mark.parametrize("quick", [True, False])
def test_a_configured_activation_is_no_guess(tmp_path, state, quick, recwarn):
    save_file(state, tmp_path / "model.safetensors")
    said = {"model_cfg": {"quick_gelu": quick}, "preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(said))
    spec = load_backbone(tmp_path / "model.safetensors", device="cpu").spec
    assert spec.activation == ("gelu", "quick_gelu")[quick]
    assert not recwarn.list


def test_tokenizer_of_another_vocabulary(tmp_path):
    folder, _ = MAKERS["siglip_folder"](tmp_path / "sig")
    (folder / "tokenizer.json").write_bytes((Path(checkpoints.__file__).parent / "vocab/tokenizer.json").read_bytes())
    backbone = load_backbone(folder, image_size=64, device="cpu")
    with pytest.raises(CheckpointError, match="<eos>"):
        backbone.encode_text(["x"])


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("clip-vit-l14", "did you mean 'clip-vit-l-14'")
    refused("nothing-like-it", "give a file, a folder, a hub name, or one of tiny")
    refused(tmp_path / "missing.pt", "no backbone .*missing.pt")
    (tmp_path / "image.png").touch()
    refused(tmp_path / "image.png", "not a weights file")
    refused("", "no backbone ''")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"activation": "relu"}, "unknown activation 'relu'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"dtype": torch.int64}, "unknown dtype"),
        ({"image_size": 0}, "image_size 0"),
        ({"image_size": 15}, "16 to 8192"),
        ({"image_size": (64, 64, 3)}, "image_size"),
        ({"image_size": 64.5}, "image_size"),
        ({"image_size": 10**6}, "image_size"),
    ],
)
def test_other_arguments(options, match):
    refused("stand-in", match, RecipeError, **options)


def test_devices():
    for device in ("gpu", "cuda:99", ""):
        with pytest.raises(RecipeError, match="cannot be used here"):
            load_backbone("stand-in", device=device)
