"""The catalogue, and where the weights it names are looked for: cache folder, hub, offline afterwards."""

import hashlib
import shutil
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from makers import MAKERS

from madclip.backbones import hub, load_backbone, sources
from madclip.backbones.catalogue import catalogue
from madclip.backbones.checkpoints import OPENAI_SHA256
from madclip.errors import CheckpointError

HUB_NAME = "someone/tiny-clip"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "backbones"
    monkeypatch.setattr("madclip.backbones.catalogue.cache_folder", lambda: folder)
    monkeypatch.setattr(hub, "cache_folder", lambda: folder)
    return folder


@pytest.fixture
def remote(tmp_path, cache, monkeypatch):
    """A hub with one repository, of which `calls` counts the contacts and `down` ends them."""
    files, _ = MAKERS["clip_folder"](tmp_path / "remote")
    (files / "pytorch_model.bin").write_bytes(b"never asked for")
    (files / "README.md").write_text("never asked for")
    local = tmp_path / "hub" / "rev1"
    state = SimpleNamespace(calls=0, down=False, files=files, local=local, damage=False)

    def contact():
        state.calls += 1
        if state.down:
            raise ConnectionError("no route to host\nsecond line")

    def model_info(self, name, files_metadata):
        contact()
        assert name == HUB_NAME
        lfs = {"model.safetensors", "pytorch_model.bin"}
        siblings = [
            SimpleNamespace(
                rfilename=f.name,
                lfs=SimpleNamespace(sha256=hashlib.sha256(f.read_bytes()).hexdigest()) if f.name in lfs else None,
            )
            for f in files.iterdir()
        ]
        return SimpleNamespace(sha="rev1", siblings=siblings)

    def snapshot_download(name, revision=None, allow_patterns=None, local_files_only=False):
        if local_files_only:
            if not local.is_dir() or revision not in (None, "rev1"):
                raise huggingface_hub.errors.LocalEntryNotFoundError("nothing cached")
            return str(local)
        contact()
        local.mkdir(parents=True, exist_ok=True)
        for file in allow_patterns:
            shutil.copy(files / file, local / file)
        if state.damage:
            with (local / "model.safetensors").open("ab") as file:
                file.write(b"x")
        return str(local)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def test_rows():
    rows = catalogue()
    assert len({row.id for row in rows}) == len(rows)
    assert {"tiny", "stand-in", "clip-vit-l-14-336", "pubmedclip", "medsiglip-448", "plip"} <= {row.id for row in rows}
    for row in rows:
        if row.hub:
            assert row.hub.count("/") == 1
            assert row.image_size >= row.patch_size > 0
            assert row.folder.name == row.id
    assert {row.sha256: row.id for row in rows if row.hub and row.sha256} == OPENAI_SHA256
    assert not next(row for row in rows if row.id == "metaclip-vit-l-14").commercial


@pytest.mark.parametrize("name", ["stand-in", "tiny"])
def test_what_ships_is_what_its_row_says(name):
    if name == "tiny" and not sources.TINY.is_dir():
        pytest.skip("the bundled backbone is not in this build")
    row = next(row for row in catalogue() if row.id == name)
    spec = load_backbone(name, device="cpu").spec
    assert (row.depth, row.width, row.patch_size, row.image_size, row.embed_dim) == (
        spec.depth,
        spec.width,
        spec.patch_size,
        spec.native_image_size,
        spec.embed_dim,
    )
    assert (spec.licence, spec.commercial) == (row.licence, row.commercial)


def test_tiny_without_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TINY", tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="the bundled backbone is not in this build"):
        load_backbone("tiny", device="cpu")


def test_a_downloaded_folder_is_found_by_id(cache):
    MAKERS["clip_folder"](cache / "plip")
    backbone = load_backbone("plip", image_size=64, device="cpu")
    assert (backbone.spec.id, backbone.spec.licence, backbone.spec.commercial) == ("plip", "not stated", None)
    assert load_backbone("vinid/plip", image_size=64, device="cpu").fingerprint == backbone.fingerprint


def test_a_downloaded_file_is_held_against_its_hash(cache):
    (cache / "clip-vit-b-32").mkdir(parents=True)
    torch.save({}, cache / "clip-vit-b-32" / "ViT-B-32.pt")
    with pytest.raises(CheckpointError, match="is not clip-vit-b-32: its SHA-256"):
        load_backbone("clip-vit-b-32", device="cpu")


def test_download_once_then_offline(remote, cache):
    first = load_backbone(HUB_NAME, image_size=64, device="cpu")
    assert first.spec.id == HUB_NAME
    assert sorted(f.name for f in remote.local.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert "rev1" in (cache / "hub" / "someone--tiny-clip.json").read_text()
    remote.down, before = True, remote.calls
    assert load_backbone(HUB_NAME, image_size=64, device="cpu").fingerprint == first.fingerprint
    assert remote.calls == before


def test_an_incomplete_cache_is_downloaded_again(remote):
    load_backbone(HUB_NAME, image_size=64, device="cpu")
    (remote.local / "model.safetensors").unlink()
    load_backbone(HUB_NAME, image_size=64, device="cpu")
    assert (remote.local / "model.safetensors").is_file()


def test_without_network_what_the_hub_library_holds_is_used(remote):
    remote.local.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(remote.files / name, remote.local / name)
    remote.down = True
    load_backbone(HUB_NAME, image_size=64, device="cpu")


def test_without_network_and_cache(remote):
    remote.down = True
    with pytest.raises(CheckpointError, match=r"could not be downloaded \(no route to host\): put") as caught:
        load_backbone(HUB_NAME, device="cpu")
    assert "\n" not in str(caught.value)
    remote.down = True
    with pytest.raises(CheckpointError, match=r"put ViT-B-32\.pt, or its config\.json.* into .*clip-vit-b-32"):
        load_backbone("clip-vit-b-32", device="cpu")


def test_a_damaged_download_is_removed_and_never_used(remote):
    remote.damage = True
    with pytest.raises(CheckpointError, match="came damaged"):
        load_backbone(HUB_NAME, device="cpu")
    assert not (remote.local / "model.safetensors").exists()
    remote.damage = False
    load_backbone(HUB_NAME, image_size=64, device="cpu")


def test_a_repository_without_weights(remote):
    for name in ("model.safetensors", "pytorch_model.bin"):
        (remote.files / name).unlink()
    with pytest.raises(CheckpointError, match="none of the weights"):
        load_backbone(HUB_NAME, device="cpu")


def test_names_are_there_without_torch():
    code = "import sys; from madclip.backbones.catalogue import catalogue; catalogue(); "
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
