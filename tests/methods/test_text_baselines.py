"""APRIL-GAN, WinCLIP, MVFA and MediCLIP: their equations by hand, and that they find what is there to be found."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from madclip import load_backbone
from madclip.data.load import load_dataset
from madclip.evaluation.protocol import evaluate
from madclip.head.memory import far_from_memory
from madclip.head.scoring import abnormal_share, text_scores
from madclip.methods import load_baseline
from madclip.methods.april_gan import memory_map, project
from madclip.methods.learning import Adam, Learning, optimise
from madclip.methods.mediclip import BODY, make_anomaly, push_away, random_region
from madclip.methods.mvfa import feed_back
from madclip.methods.winclip import harmonic_mean, spread, window_patches


def test_scores_against_texts():
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    features = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    scores = text_scores(features, text, 0.1)
    torch.testing.assert_close(scores, torch.tensor([[6.0, 8.0], [0.0, 10.0]]))
    expected = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-10))]
    torch.testing.assert_close(abnormal_share(scores), torch.tensor(expected))


def test_distance_to_a_memory():
    memory = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    found = far_from_memory(torch.tensor([[2.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]), memory)
    torch.testing.assert_close(found, torch.tensor([0.0, 1 - math.sqrt(0.5), 1.0]))


def test_optimise_reaches_a_minimum_the_same_way_each_time():
    targets = torch.tensor([1.0, 2.0, 3.0])

    def minimum():
        value = torch.nn.Parameter(torch.zeros(()))
        optimise([value], 3, lambda rows: (value - targets[rows]).square().mean(), Adam(300, 0.05), Learning())
        return value.item()

    assert minimum() == minimum() == pytest.approx(2, abs=1e-3)


# APRIL-GAN


def test_every_tap_has_its_own_linear_layer():
    tokens = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # [1, 2 taps, 1 patch, 2]
    weights = torch.tensor([[[1.0, 1.0]], [[2.0, 0.0]]])  # [2 taps, 1, 2]
    assert project(tokens, weights).flatten().tolist() == [3, 6]


def test_memory_map_is_the_mean_over_taps():
    tokens = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    memory = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    assert memory_map(tokens, memory).item() == pytest.approx((0 + 1) / 2)


# WinCLIP


def test_windows():
    assert window_patches((3, 3), 2).tolist() == [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    assert window_patches((3, 3), 3).tolist() == [list(range(9))]
    assert window_patches((20, 20), 2).shape == (361, 4)
    assert window_patches((2, 2), 3).tolist() == [[0, 1, 2, 3]]


def test_a_patch_gets_the_harmonic_mean_of_its_windows():
    windows = torch.tensor([[0, 1], [1, 2]])
    found = spread(torch.tensor([[0.5, 0.25]]), windows)[0]
    torch.testing.assert_close(found, torch.tensor([0.5, 2 / (2 + 4), 0.25]))
    assert harmonic_mean(torch.tensor([0.5, 0.25]), 0).item() == pytest.approx(1 / 3)


# MVFA


def test_feed_back():
    fed = feed_back(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(30.0))
    assert fed.item() == pytest.approx(0.8 * 1 + 0.1 * 2 + 0.1 * 30)


def test_an_adapter_changes_the_taps_after_it(small_backbone, small_data):
    detector = load_baseline("mvfa")(small_backbone, objective="Brain").fit(small_data, shots=2)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = detector.features(pixels).detection
    detector.up[:, 1] *= 2
    after = detector.features(pixels).detection
    assert torch.equal(before[:2], after[:2])
    assert not torch.allclose(before[2:], after[2:])


# MediCLIP


@given(st.integers(0, 10_000))
def test_an_anomaly_changes_nothing_outside_its_mask(seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, 40, 40, generator=generator)
    made, mask = make_anomaly(image, generator)
    assert torch.equal(made[:, ~mask], image[:, ~mask])
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    assert mask.any()


def test_anomalies_lie_in_the_body():
    image = torch.zeros(3, 60, 60)
    image[:, 20:40, 10:30] = 0.5
    for seed in range(50):
        mask, (row, column), radius = random_region(image, torch.Generator().manual_seed(seed))
        assert image[0, row, column] > BODY
        assert mask[row, column]
        assert mask.sum() < math.pi * (2.5 * radius + 1) ** 2


def test_a_source_pushes_outwards():
    image = torch.zeros(1, 41, 41)
    image[:, 19:22, 19:22] = 1
    for seed in range(10):
        grown = push_away(image, (20, 20), 10.0, torch.Generator().manual_seed(seed))
        assert float(grown.sum()) > 2 * float(image.sum())
        torch.testing.assert_close(grown[:, :4], image[:, :4], atol=1e-4, rtol=0)


# All of them on images with something to find


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny", image_size=96, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def discs(tmp_path_factory, make_images):
    return make_images(tmp_path_factory.mktemp("discs"), {"valid": (8, 8), "test": (20, 20)}, size=(96, 96))


@pytest.mark.parametrize("name", ["april-gan", "mvfa", "mediclip", "winclip", "patchcore"])
def test_finds_bright_discs(name, tiny, discs):
    detector = load_baseline(name)(tiny, objective="Brain").fit(discs, shots=8)
    metrics = evaluate(detector, discs).metrics
    assert metrics["pixel_auroc"].value > 0.8
    if name != "winclip":  # half of its image score is the text's, which knows nothing of these images
        assert metrics["image_auroc"].value > 0.7


def test_mvfa_without_masks_shows_the_detection_patches(tiny, tmp_path, make_images):
    data = make_images(tmp_path / "plain", {"valid": (4, 4), "test": (2, 2)}, size=(96, 96), masks=False)
    detector = load_baseline("mvfa")(tiny, objective="Brain").fit(data, shots=4)
    assert not detector.has_masks
    for result in detector.predict_iter([s.image for s in load_dataset(data).test_pool]):
        assert 0 <= result.score <= 1
