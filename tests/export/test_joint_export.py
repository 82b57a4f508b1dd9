"""An export of a joint detector tells modalities apart itself."""

import pytest
import torch

from madclip import MadCLIP
from madclip.export.graph import DetectorGraph, in_float32, traced


@pytest.fixture(scope="module")
def joint(make_images, small_recipe, small_backbone, tmp_path_factory):
    folders = {}
    for seed, name in enumerate(("Brain", "Liver")):
        root = tmp_path_factory.mktemp(name)
        folders[name] = make_images(root, {"valid": (3, 3)}, seed=seed, masks=name == "Brain")
    return MadCLIP(small_recipe, backbone=small_backbone).fit(folders, shots=None, folds=0)


def test_both_modalities_in_one_batch_of_any_size(joint):
    brightness = torch.linspace(0.1, 1, 5)[:, None, None, None]
    pixels = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * brightness
    taken = [one.modality for one in joint.predict([image.permute(1, 2, 0).numpy() for image in pixels])]
    each = [joint.of(name).score(pixels[i : i + 1]) for i, name in enumerate(taken)]
    program = traced(DetectorGraph(in_float32(joint))).module()
    with torch.inference_mode():
        for found, maps, _ in (program(pixels), (*joint.score(pixels), None)):
            assert found.tolist() == pytest.approx([score.item() for score, _ in each], abs=1e-6)
            assert torch.allclose(maps, torch.cat([drawn for _, drawn in each]), atol=1e-5)
