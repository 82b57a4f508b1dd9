"""The head alone against the released code: text features given, S of order 1 (golden `strong/*`)."""

import pytest
import torch
import weights

from madclip.head import losses, scoring
from madclip.head.adapters import DETECTION, SEGMENTATION, Adapters

TAPS = (6, 12, 18, 24)
GRID, SIZE = (4, 4), (56, 56)


def relative(actual, expected, centre=0.0):
    """Largest absolute difference over the expected array's largest absolute value about a centre."""
    actual, expected = actual.detach().double(), expected.double()
    return float((actual - expected).abs().max() / (expected - centre).abs().max())


def released_adapters():
    adapters = Adapters(4, 128, 48, activation="leaky_relu", norm="layer_norm")
    with torch.no_grad():
        for tap in range(4):
            for b, branch in enumerate(("normal", "abnormal")):
                name = f"{branch}_det_adapters.{tap}.fc{{}}.0.weight"
                adapters.shared[tap, b] = torch.from_numpy(weights.adapter_tensor(name.format(1), (128, 128)))
                for h, layer in enumerate((2, 3)):
                    adapters.heads[tap, b, h] = torch.from_numpy(weights.adapter_tensor(name.format(layer), (48, 128)))
    return adapters


@pytest.fixture(scope="module")
def strong(golden):
    """Adapters, text, S of both heads and loss terms at the golden tokens."""
    adapters = released_adapters()
    text = golden["strong/text_features"].clone().requires_grad_()
    towards = scoring.directions(text)
    features = [adapters(i, golden[f"gelu/tokens/{tap}"][:, 1:]) for i, tap in enumerate(TAPS)]
    detection, segmentation = (
        torch.stack([scoring.patch_scores(f[:, head], towards) for f in features]) for head in (DETECTION, SEGMENTATION)
    )
    logits = scoring.map_logits(segmentation, GRID, SIZE, align_corners=True)
    labels, masks = golden["label"], (golden["mask"][:, 0] > 0.5).float()
    terms = {
        "siglip": losses.siglip_loss(detection, labels),
        "dice": losses.dice_loss(logits, masks),
        "focal": losses.focal_loss(logits, masks, smoothing=1e-5),
    }
    return adapters, text, detection, segmentation, logits, terms


@pytest.mark.parametrize("tap", range(4))
def test_scores_of_both_heads(golden, strong, tap):
    _, _, detection, segmentation, _, _ = strong
    assert relative(detection[tap], golden[f"strong/det_scores/{TAPS[tap]}"]) < 1e-4
    assert relative(segmentation[tap], golden[f"strong/seg_scores/{TAPS[tap]}"]) < 1e-4


@pytest.mark.parametrize("term", ["siglip", "dice", "focal"])
def test_loss_terms(golden, strong, term):
    assert relative(strong[-1][term], golden[f"strong/loss/{term}"]) < (1e-3 if term == "focal" else 1e-4)


def test_map_and_image_score(golden, strong):
    _, _, detection, _, logits, _ = strong
    assert relative(4 * scoring.anomaly_map(logits), golden["strong/anomaly_map"]) < 1e-4
    assert relative(4 * scoring.mean_score(detection), golden["strong/image_score_mean"]) < 1e-4


def test_gradients(golden, strong):
    adapters, text, _, _, _, terms = strong
    loss = sum(term.sum() for term in terms.values())
    shared, heads, to_text = torch.autograd.grad(loss, [adapters.shared, adapters.heads, text], retain_graph=True)
    names = [str(name) for name in golden["released/grad_names/adapters"]]
    norms = []
    for name in names:
        branch, tap, layer, *_ = name.replace("_det_adapters", "").split(".")
        b, t = ("normal", "abnormal").index(branch), int(tap)
        gradient = shared[t, b] if layer == "fc1" else heads[t, b, int(layer[2]) - 2]
        norms.append(gradient.norm())
    assert relative(torch.stack(norms), golden["strong/grad_norm/adapters"]) < 2e-4
    assert relative(to_text, golden["strong/grad_text_features"]) < 2e-4


def test_softmax_loss_of_ablation_e(golden, strong):
    assert relative(losses.softmax_loss(strong[2], golden["label"]), golden["strong/ablation/softmax_loss"]) < 1e-4


def test_focal_without_smoothing_is_the_formula(golden, strong):
    logits, masks = strong[4], (golden["mask"][:, 0] > 0.5).double()
    p = logits.detach().double().sigmoid()
    p_true = torch.where(masks.bool(), p, 1 - p)
    expected = ((1 - p_true) ** 2 * -p_true.log()).mean((1, 2, 3))
    assert relative(losses.focal_loss(logits, masks.float()), expected) < 1e-5
