"""The head alone against the released code: text features given, S of order 1 (golden `strong/*`)."""

import pytest
import torch
import weights

from madclip.head import fused, losses, scoring
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
    features = list(adapters([golden[f"gelu/tokens/{tap}"][:, 1:] for tap in TAPS]))
    detection, segmentation = (
        torch.stack([scoring.patch_scores(f[:, head], towards) for f in features]) for head in (DETECTION, SEGMENTATION)
    )
    logits = scoring.map_logits(segmentation, GRID, SIZE, align_corners=True)
    maps = fused.map_losses(logits, golden["mask"][:, 0] > 0.5, smoothing=1e-5)
    terms = {"siglip": losses.siglip_loss(detection, golden["label"])} | maps._asdict()
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


def written_out(logits, masks, smoothing):
    """The equations of the method, with the one-hot target of the released code."""
    p, masks = logits.sigmoid(), masks.double()
    dice = 1 - ((2 * (p * masks).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + masks.sum((-2, -1)) + 1)).mean(-1)
    onehot = torch.stack([1 - masks, masks]).clamp(smoothing, 1 - smoothing)
    true = (onehot[:, None] * torch.stack([1 - p, p])).sum(0) + smoothing
    return dice, ((1 - true) ** 2 * -true.log()).mean((1, 2, 3))


def plain(logits, masks, smoothing):
    return losses.dice_loss(logits, masks), losses.focal_loss(logits, masks, smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 1e-5, 1e-2])
def test_map_losses_and_their_gradients_are_the_equations(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 5, 12, 9, generator=generator, dtype=torch.float64)
    masks = torch.rand(5, 12, 9, generator=generator) < torch.tensor([0, 0.1, 0.5, 0.9, 1])[:, None, None]
    weights = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    results = []
    for compute in (fused.map_losses, plain, written_out):
        leaf = logits.clone().requires_grad_()
        terms = compute(leaf, masks, smoothing=smoothing)
        (torch.stack(tuple(terms)) * weights).sum().backward()
        results.append([*terms, leaf.grad])
    for ours, plainly, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
        assert torch.allclose(plainly, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", [plain, fused.map_losses])
def test_a_pixel_that_is_surely_wrong_has_a_finite_loss_and_gradient(form):
    leaf = torch.full((1, 1, 4, 4), -200.0).requires_grad_()
    dice, focal = form(leaf, torch.ones(1, 4, 4, dtype=torch.bool), smoothing=0.0)
    (dice + focal).sum().backward()
    assert float(focal.detach()) == pytest.approx(200)
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("align_corners", [True, False])
def test_maps_are_interpolated_bilinearly(align_corners):
    scores = torch.randn(2, 3, 20, 2, generator=torch.Generator().manual_seed(0))
    ours = scoring.map_logits(scores, (4, 5), (56, 61), align_corners=align_corners)
    expected = torch.nn.functional.interpolate(
        (scores[..., 1] - scores[..., 0]).view(2, 3, 4, 5), (56, 61), mode="bilinear", align_corners=align_corners
    )
    assert torch.allclose(ours, expected, atol=1e-6)
