"""The whole chain against the released code: from files in the authors' formats to scores, losses, gradients, a fit."""

import pytest
import released_files
import torch
from test_golden_head import TAPS, relative

from madclip import MadCLIP, Recipe, load_backbone
from madclip.head.head import Head
from madclip.head.prompts import fixed_text_features
from madclip.training.encode import encode_patches, prepare
from madclip.training.fit import fit_head
from madclip.training.shots import Shot

RELEASED = Recipe.preset("released", image_size=56)


@pytest.fixture(scope="module", params=["openai", "huggingface"])
def backbone(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    openai = released_files.write_openai(folder / "toy.pt")
    if request.param == "openai":
        return load_backbone(openai, image_size=56, activation="gelu", device="cpu")
    return load_backbone(
        released_files.write_huggingface(openai, folder / "toy"), image_size=56, activation="gelu", device="cpu"
    )


@pytest.fixture(scope="module")
def detector(backbone, tmp_path_factory):
    path = released_files.write_released(tmp_path_factory.mktemp("released") / "Brain.pth")
    return MadCLIP.from_released(path, backbone=backbone, objective="Brain", image_size=56, image_score="mean")


@pytest.fixture(scope="module")
def scores(detector, golden):
    tokens = encode_patches(detector.backbone, detector.recipe.view, golden["image"])
    return detector.state.head(tokens, detector.state.head.text())


@pytest.fixture(scope="module")
def terms(detector, scores, golden):
    masks = golden["mask"][:, 0] > 0.5
    return detector.state.head.loss(scores, golden["label"], masks)


def test_prompt_embeddings(detector, golden):
    ours = detector.state.head.prompts.prompt_embeddings().detach()[21:, :24]
    assert relative(ours, golden["released/prompts_abnormal"]) < 1e-4


def test_text_features(detector, golden):
    assert relative(detector.state.head.text(), golden["released/text_features"]) < 1e-4


@pytest.mark.parametrize("tap", range(4))
def test_scores(scores, golden, tap):
    assert relative(scores.detection[tap], golden[f"released/det_scores/{TAPS[tap]}"]) < 1e-4
    assert relative(scores.segmentation[tap], golden[f"released/seg_scores/{TAPS[tap]}"]) < 1e-4


def test_loss_terms(terms, golden):
    for name, bound in (("siglip", 1e-4), ("dice", 1e-4), ("focal", 1e-3)):
        assert relative(getattr(terms, name), golden[f"released/loss/{name}"]) < bound
    assert relative(terms.total, golden["released/loss/total"]) < 1e-4


def test_public_score(detector, golden):
    image_scores, maps = detector.score(golden["image"])
    assert relative(4 * maps, golden["released/anomaly_map"], centre=2) < 1e-4
    assert relative(4 * image_scores, golden["released/image_score_mean"], centre=2) < 1e-4


def test_gradients(detector, terms, golden):
    head = detector.state.head
    shared, heads, contexts = torch.autograd.grad(
        terms.total, [head.adapters.shared, head.adapters.heads, head.prompts.contexts], retain_graph=True
    )
    norms = [
        (shared[tap, branch] if layer == 1 else heads[tap, branch, layer - 2]).norm()
        for branch in (0, 1)
        for tap in range(4)
        for layer in (1, 2, 3)
    ]
    assert relative(torch.stack(norms), golden["released/grad_norm/adapters"]) < 2e-4
    prompts = [contexts[branch, position].norm() for branch in (1, 0) for position in range(3)]
    assert relative(torch.stack(prompts), golden["released/grad_norm/prompts"]) < 2e-4


def test_ablation_losses_and_scores(detector, scores, golden):
    from madclip.head import losses

    assert relative(losses.softmax_loss(scores.detection, golden["label"]), golden["ablation/softmax_loss"]) < 1e-4
    plain = Head(RELEASED.replace(contrast=False), detector.backbone, "Brain")
    plain.load_state_dict(detector.state.head.state_dict())
    tokens = encode_patches(detector.backbone, RELEASED.view, golden["image"])
    assert relative(plain(tokens, plain.text()).detection[3], golden["ablation/no_contrast/det_scores/24"]) < 1e-4


def test_fixed_prompts_of_ablation_a(backbone, golden):
    features = fixed_text_features(backbone, "Brain")
    assert relative(features, golden["ablation/fixed_prompts/text_features"]) < 1e-4


def test_training_trajectory(detector, golden):
    shots = [
        Shot(image, int(label), mask[0] > 0.5 if label else None, f"{i:064x}")
        for i, (image, label, mask) in enumerate(zip(golden["image"], golden["label"], golden["mask"], strict=True))
    ]
    recipe = RELEASED.replace(variants=("identity",), batch_size=6, epochs=8)
    head = Head(recipe, detector.backbone, "Brain")
    head.load_state_dict(detector.state.head.state_dict())
    history = fit_head(head, prepare(shots, detector.backbone, recipe), recipe)
    totals = torch.tensor([sum(epoch.values()) for epoch in history])
    assert relative(totals, golden["released/trajectory"]) < 1e-4
