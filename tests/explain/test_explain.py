"""What a detector learned and why it says what it says: parts sum to the whole, words and shots by brute force."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from madclip import MadCLIP
from madclip.data.geometry import fit_pixels
from madclip.data.load import load_dataset
from madclip.data.readers import read_image
from madclip.errors import DataError, RecipeError
from madclip.explain import explain
from madclip.explain.parts import contributions, shapley
from madclip.explain.texts import word_table
from madclip.head.head import Head
from madclip.head.memory import NormalMemory
from madclip.head.scorer import Readout
from madclip.head.zero_shot import ZeroShot
from madclip.recipe import Recipe

RECIPES = {
    "madclip": {},
    "one branch": {"dual_branch": False},
    "one head": {"separate_heads": False},
    "no contrast": {"contrast": False},
    "fixed prompts": {"learned_prompts": False},
    "aligned corners, leaky, normed": {
        "align_corners": True,
        "adapter_activation": "leaky_relu",
        "adapter_norm": "layer_norm",
    },
}


@pytest.fixture(scope="module")
def data(make_images, tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("explained"), {"valid": (4, 4), "test": (2, 2)})


@pytest.fixture(scope="module")
def dataset(data):
    return load_dataset(data)


@pytest.fixture(scope="module")
def image(dataset):
    return next(sample.image for sample in dataset.test_pool if sample.label)


def fitted(recipe, backbone, dataset, **options):
    detector = MadCLIP(recipe, backbone=backbone, objective="Brain")
    return detector.fit(dataset, **{"shots": 4, "folds": 0} | options)


@pytest.fixture(scope="module")
def detector(small_recipe, small_backbone, dataset):
    return fitted(small_recipe, small_backbone, dataset)


@pytest.fixture(scope="module")
def tokens(small_backbone):
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return torch.stack(small_backbone.encode_image(small_backbone.prepare(pixels)), 1)


def agree(head, tokens, readout, text=None):
    """Parts sum to the head's own scores and maps."""
    text = head.text().detach() if text is None else text
    found = contributions(head, tokens, text, readout)
    with torch.inference_mode():
        scores, maps = head.score(tokens, readout, text)
    torch.testing.assert_close(found.scores, scores, rtol=0, atol=2e-6)
    torch.testing.assert_close(found.anomaly_maps, maps, rtol=0, atol=2e-6)
    return found


@pytest.mark.parametrize("rule", ["mean", "max", "both"])
@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES)
def test_parts_of_a_head_sum_to_scores_and_maps(small_backbone, tokens, changes, rule):
    head = Head(Recipe(image_size=64, **changes), small_backbone, "Brain")
    with torch.no_grad():
        head.adapters.heads.mul_(5)  # far from where a sigmoid is a straight line
    patches = tokens[:, :, small_backbone.spec.prefix_tokens :]
    for masks in (True, False):
        agree(head, patches, Readout(rule, masks))


@pytest.mark.parametrize("rule", ["mean", "max", "both"])
@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_parts_of_a_memory_sum_to_scores_and_maps(small_backbone, tokens, rule, weight):
    memory = NormalMemory.of(Recipe(image_size=64, text_weight=weight), small_backbone, "Brain", tokens[:2])
    found = agree(memory, tokens, Readout(rule, False))
    assert len(found.parts) == 4 + (weight > 0)
    assert float(found.whole[:4, 0].abs().max()) < 1e-6  # an image of the memory is at no distance


@pytest.mark.parametrize("rule", ["mean", "max", "both"])
def test_parts_of_texts_alone_sum_to_scores_and_maps(small_backbone, tokens, rule):
    agree(ZeroShot(Recipe(image_size=64), small_backbone, "Brain"), tokens, Readout(rule, False))


def test_what_a_tap_gives_is_that_of_plain_arithmetic(small_backbone, tokens):
    """Adapters, unit length, log-odds and sigmoid written out in NumPy, tap by tap."""
    head = Head(Recipe(image_size=64), small_backbone, "Brain")
    patches = tokens[:, :, small_backbone.spec.prefix_tokens :]
    text = head.text().detach()
    found = contributions(head, patches, text, Readout("mean", True))
    way = (text[:, 1] - text[:, 0]).double().numpy()
    shared, heads = (one.detach().double().numpy() for one in (head.adapters.shared, head.adapters.heads))
    for tap in range(4):
        odds = 0
        for branch in (0, 1):
            hidden = np.maximum(patches[:, tap].double().numpy() @ shared[tap, branch].T, 0)
            features = np.maximum(hidden @ heads[tap, branch, 0].T, 0)
            odds = odds + features @ way / np.linalg.norm(features, axis=-1)
        expected = (1 / (1 + np.exp(-odds)) - 0.5).mean(-1) / 4
        given = sum(found.whole[i] for i, part in enumerate(found.parts) if part.tap == tap + 1)
        np.testing.assert_allclose(given.numpy(), expected, atol=1e-6)


def test_shapley_values_by_their_definition():
    odds = torch.tensor([2.0, -1.5])

    def value(players):
        return float(torch.sigmoid(odds[list(players)].sum())) - 0.5

    for player, found in enumerate(shapley(odds[0], odds[1])):
        added = []
        for order in itertools.permutations((0, 1)):
            before = order[: order.index(player)]
            added.append(value((*before, player)) - value(before))
        assert float(found) == pytest.approx(np.mean(added), abs=1e-7)


def test_nearest_words_by_brute_force(detector, small_backbone):
    texts = explain(detector).texts
    contexts = detector.state.head.prompts.contexts.detach()
    assert len(texts.contexts) == contexts[..., 0].numel()
    words = small_backbone.words
    generator = np.random.default_rng(0)
    for place in generator.choice(len(texts.contexts), 3, replace=False):
        vector = contexts.reshape(-1, contexts.shape[-1])[place].double().numpy()
        best = []
        for number, word in words.items():
            row = small_backbone.embed_tokens(torch.tensor([[number]]))[0, 0].double().numpy()
            best.append((float(row @ vector / np.linalg.norm(row) / np.linalg.norm(vector)), word))
        best.sort(reverse=True)
        found = texts.contexts[place].nearest
        assert [near.cosine for near in found] == pytest.approx([value for value, _ in best[:3]], abs=1e-5)
        assert [near.word for near in found] == [word for _, word in best[:3]]


def test_words_are_spelled_as_the_tokenizer_reads_them(small_backbone):
    words = small_backbone.words
    some = dict(itertools.islice(words.items(), 0, None, max(1, len(words) // 50)))
    assert all(small_backbone.tokenize([word]) == [[number]] for number, word in some.items() if len(word) > 3)
    assert len(word_table(small_backbone)[0]) == len(words)


def test_directions_of_texts(detector, small_backbone):
    texts = explain(detector).texts
    text = detector.state.text.numpy()
    assert texts.between == pytest.approx(float(text[:, 0] @ text[:, 1]), abs=1e-6)
    assert 0 < texts.lowest < 0.5 < texts.highest < 1
    start = Head(detector.recipe, small_backbone, "Brain", seed=0)
    way = start.prompts.contexts.detach() - detector.state.head.prompts.contexts.detach()
    moved = way.norm(dim=-1) / start.prompts.contexts.detach().norm(dim=-1)
    assert [one.moved for one in texts.contexts] == pytest.approx(moved.flatten().tolist(), rel=1e-5)


def test_what_did_not_learn_is_said(small_recipe, small_backbone, dataset):
    still = fitted(small_recipe.replace(learning_rate=1e-7), small_backbone, dataset)
    told = explain(still)
    count = len(told.texts.contexts)
    assert f"{count} of {count} learned contexts barely moved" in " ".join(told.findings)
    assert any("Learning the prompts changed next to nothing" in line for line in told.findings)
    assert any("hardly moved the adapters" in line for line in told.findings)
    assert all(value < 1e-3 for _, value in told.moved)


def test_a_dead_branch_is_said(detector, small_backbone, image, data):
    head = Head(detector.recipe, small_backbone, "Brain")
    head.load_state_dict(detector.state.head.state_dict())
    with torch.no_grad():
        head.adapters.heads[1, 0] = 0  # the normal branch of tap 2
    broken = MadCLIP(detector.recipe, backbone=small_backbone, objective="Brain")
    broken.fitted = dataclasses.replace(detector.state, head=head)
    told = explain(broken, image, data=data)
    dead = [i for i, part in enumerate(told.image.parts.parts) if part.name == "tap 2, normal branch"]
    assert float(told.image.parts.given[dead].abs().max()) == 0
    assert float(told.image.parts.maps[dead].abs().max()) == 0
    assert any("Dead: the normal branch of tap 2 contributes nothing" in line for line in told.findings)
    alone = explain(broken, image)
    assert any("Next to nothing" in line and "the normal branch of tap 2" in line for line in alone.findings)


def test_the_shots_are_found_and_the_nearest_of_a_shot_is_itself(detector, dataset, data):
    shot = next(sample for sample in dataset.shot_pool if sample.label)
    told = explain(detector, shot.image, data=data)
    assert len(told.shots.samples) == told.shots.of == 8
    nearest = told.shots.nearest(told.image.pooled)
    assert nearest[0][0].image == shot.image
    assert nearest[0][1] == pytest.approx(1, abs=1e-6)
    scores = told.image.parts.base + told.shots.given.sum(0)
    predicted = [one.score for one in detector.predict([sample.image for sample in told.shots.samples])]
    np.testing.assert_allclose(scores.numpy(), predicted, atol=2e-6)
    assert float(told.shots.gap().sum()) == pytest.approx(1, abs=1e-5)


def test_data_without_the_shots(detector, make_images, tmp_path):
    other = make_images(tmp_path / "other", {"valid": (2, 2)}, seed=5)
    with pytest.raises(DataError, match="holds none of the detector's 8 shots"):
        explain(detector, data=other)


def test_a_memory_says_which_shot_is_near(small_recipe, small_backbone, dataset, data):
    normals = [sample for sample in dataset.shot_pool if not sample.label]
    remembering = fitted(small_recipe, small_backbone, normals, shots=None)
    told = explain(remembering, normals[2].image, data=data)
    shares = told.image.memory.shots
    assert sum(shares) == pytest.approx(1)
    own = max(range(len(shares)), key=lambda shot: shares[shot])
    assert told.image.memory.samples[own].image == normals[2].image
    for place in told.image.memory.patches:
        if place.shot == own:
            assert place.there is not None
    assert {sample.image for sample in told.image.memory.samples.values()} == {one.image for one in normals}
    # By brute force: every patch of an image it has not seen against every patch of the memory.
    unseen = next(sample.image for sample in dataset.test_pool if sample.label)
    found = explain(remembering, unseen).image
    assert found.memory.samples == {}
    head = remembering.state.head
    pixels = fit_pixels(read_image(unseen).pixels, remembering.recipe.view)[None]
    streams = small_backbone.encode_image(small_backbone.prepare(pixels))
    rows = head.features(torch.stack(streams, 1))[0].double()
    distance = (rows[:, None] - head.patches.double()[None]).norm(dim=-1)
    best = distance.argmin(1) // head.kept
    assert found.memory.shots == pytest.approx((torch.bincount(best, minlength=4) / len(rows)).tolist())
    assert found.memory.patches[0].distance == pytest.approx(float(distance.amin(1).max()), rel=1e-4)


def test_an_image_in_tiles_is_explained_by_its_highest_tile(small_recipe, small_backbone, make_images, tmp_path):
    large = make_images(tmp_path / "large", {"valid": (3, 3), "test": (1, 1)}, size=(96, 80))
    tiled = fitted(small_recipe.replace(tile=48), small_backbone, load_dataset(large), shots=3)
    image = load_dataset(large).test_pool[-1].image
    told = explain(tiled, image, data=large)
    assert told.image.corner is not None
    assert float(told.image.parts.scores[0]) == pytest.approx(told.image.prediction.score, abs=2e-6)
    assert told.shots is None


def test_everything_is_json_without_names(detector, image, data):
    text = json.dumps(explain(detector, image, data=data).to_dict(), allow_nan=False)
    said = json.loads(text)
    total = said["base"] + sum(one["image"] + one["map"] for one in said["parts"].values())
    assert total == pytest.approx(said["score"], abs=2e-6)
    assert "Maier" not in text


def test_fixed_prompts_have_no_contexts(small_recipe, small_backbone, dataset):
    texts = explain(fitted(small_recipe.replace(learned_prompts=False), small_backbone, dataset)).texts
    assert texts.contexts == ()
    assert texts.to_fixed is None


def test_texts_alone_and_a_memory_without_texts(small_recipe, small_backbone, dataset, image):
    reading = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain").fit(shots=0)
    told = explain(reading, image)
    assert "Taps 1 to 3 contribute nothing" in " ".join(told.findings)
    normals = [sample for sample in dataset.shot_pool if not sample.label]
    bare = fitted(small_recipe.replace(text_weight=0.0), small_backbone, normals, shots=None)
    assert explain(bare, image).texts is None
    assert F.relu(explain(bare, image).image.parts.given).sum() > 0


def test_a_head_of_another_kind_is_refused(detector, small_backbone):
    other = MadCLIP(detector.recipe, backbone=small_backbone, objective="Brain")
    head = torch.nn.Identity()
    head.text = lambda: torch.zeros(1, 4)
    other.fitted = dataclasses.replace(detector.state, head=head)
    with pytest.raises(RecipeError, match="kind Identity cannot be explained yet"):
        explain(other)


@pytest.mark.parametrize("shared", [False, True])
def test_a_context_that_became_a_word_is_named_in_its_place(small_recipe, small_backbone, dataset, shared):
    recipe = small_recipe.replace(positions=("end", "front", "middle"), shared_contexts=shared, epochs=1)
    planted = fitted(recipe, small_backbone, dataset, shots=2)
    number, word = next((n, w) for n, w in small_backbone.words.items() if w == "scan")
    state = 0 if shared else 6
    with torch.no_grad():
        row = small_backbone.embed_tokens(torch.tensor([[number]]))[0, 0]
        planted.state.head.prompts.contexts[1, 2, state, 5] = 3 * row
    found = [one for one in explain(planted).texts.contexts if one.nearest[0].cosine > 0.9999]
    assert [(one.label, one.number, one.nearest[0].word) for one in found] == [(1, 5, word)]
    assert found[0].prompt == ("[…] all prompts of the class […]" if shared else "[…] abnormal Brain […]")
