"""A detector among scikit-learn's estimators, and on its way to another process."""

import io
import json
import pickle
import pickletools
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from madclip import MadCLIP, Recipe
from madclip.data.load import load_dataset
from madclip.errors import CheckpointError, RecipeError
from madclip.evaluation.protocol import evaluate

base = pytest.importorskip("sklearn.base")
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.model_selection import StratifiedKFold, cross_val_score  # noqa: E402
from sklearn.pipeline import Pipeline  # noqa: E402


@pytest.fixture(scope="module")
def fitted(small_detector, small_backbone):
    return MadCLIP.load(small_detector, backbone=small_backbone)


@pytest.fixture(scope="module")
def images(small_data):
    samples = load_dataset(small_data).samples
    return [str(sample.image) for sample in samples], [sample.label for sample in samples]


@pytest.fixture
def new(small_recipe):
    return MadCLIP(small_recipe, backbone="stand-in", objective="Brain", device="cpu", dtype="float32")


def test_parameters_are_the_constructors_arguments(new, fitted):
    assert list(new.get_params()) == ["recipe", "backbone", "objective", "device", "dtype"]
    assert new.set_params(objective="retinal OCT", recipe="paper") is new
    assert (new.objective, new.recipe) == ("retinal OCT", Recipe.preset("paper"))
    with pytest.raises(
        RecipeError, match="no parameter 'epochs'; there are recipe, backbone, objective, device, dtype"
    ):
        new.set_params(epochs=3)
    copy = MadCLIP(**fitted.get_params())
    assert copy.fitted is None
    assert copy.set_params().backbone is fitted.backbone


def test_what_was_learned_with_other_parameters_is_forgotten(small_detector, small_backbone, images):
    detector = MadCLIP.load(small_detector, backbone=small_backbone)
    assert detector.set_params().fitted is not None
    with pytest.raises(RecipeError, match="not fitted"):
        detector.set_params(objective="Liver").predict(images[0][0])


def test_a_clone_is_not_fitted_and_shares_the_backbone(fitted):
    clone = base.clone(fitted)
    assert (type(clone), clone.fitted, clone.get_params()) == (MadCLIP, None, fitted.get_params())
    assert clone.backbone is fitted.backbone
    assert base.is_classifier(clone)
    assert base.clone(clone).get_params() == clone.get_params()


def test_decisions_are_the_scores_whose_auroc_evaluate_gives(fitted, images, small_data):
    paths, labels = images
    scores = fitted.decision_function(np.array(paths))
    assert scores.tolist() == [one.score for one in fitted.predict(paths)]
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    np.testing.assert_allclose(fitted.decision_function(pixels), scores, atol=1e-6)
    test = [place for place, path in enumerate(paths) if "/test/" in path]
    expected = roc_auc_score(np.array(labels)[test], scores[test])
    assert evaluate(fitted, small_data).metrics["image_auroc"].value == pytest.approx(expected)


def test_a_pipeline_knows_whether_its_detector_is_fitted(fitted, new, images):
    paths, _ = images
    found = Pipeline([("detector", fitted)]).decision_function(paths[:2])
    np.testing.assert_array_equal(found, fitted.decision_function(paths[:2]))
    with pytest.raises(NotFittedError):
        Pipeline([("detector", new)]).decision_function(paths[:2])


@pytest.mark.parametrize("jobs", [1, 2])
def test_cross_validation_gives_what_it_gives_by_hand(new, images, jobs):
    """In two worker processes as well as here: the same folds, fitted and scored one by one."""
    paths, labels = images
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    found = cross_val_score(new, paths, labels, scoring="roc_auc", cv=folds, n_jobs=jobs, params={"folds": 0})
    expected = []
    for train, test in folds.split(paths, labels):
        one = MadCLIP(new.recipe, backbone="stand-in", objective="Brain", device="cpu", dtype="float32")
        one.fit([paths[i] for i in train], [labels[i] for i in train], folds=0)
        scores = [one.predict(paths[i]).score for i in test]
        expected.append(roc_auc_score([labels[i] for i in test], scores))
    assert new.fitted is None
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_fitted_detector_travels_as_its_folder(fitted, images, small_detector, monkeypatch):
    data = pickle.dumps(fitted)
    loaded = []
    load = MadCLIP.load.__func__
    monkeypatch.setattr(
        MadCLIP, "load", classmethod(lambda cls, folder, **more: loaded.append(folder) or load(cls, folder, **more))
    )
    back = pickle.loads(data)
    assert len(loaded) == 1
    assert not loaded[0].exists()
    assert back.decision_function(images[0]).tolist() == fitted.decision_function(images[0]).tolist()
    assert back.provenance == fitted.provenance
    assert back.calibration.threshold == fitted.calibration.threshold
    names = {argument for code, argument, _ in pickletools.genops(data) if "UNICODE" in code.name}
    assert names <= {"builtins", "getattr", "madclip.detector", "MadCLIP", "from_files", "auto"}
    (files,) = [argument for code, argument, _ in pickletools.genops(data) if "BYTES" in code.name]
    with zipfile.ZipFile(io.BytesIO(files)) as archive:
        kept = {path.name: path.read_bytes() for path in small_detector.iterdir()}
        assert {name: archive.read(name) for name in archive.namelist()} == kept


def packed(**files):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", files.pop("compression", zipfile.ZIP_STORED)) as writer:
        for name, content in files.pop("parts").items():
            writer.writestr(name, content)
    return archive.getvalue()


@pytest.mark.parametrize("how", ["above", "extra", "missing", "twice", "compressed", "cut", "damaged", "no archive"])
def test_an_archive_that_is_not_a_detectors_is_refused(small_detector, how, tmp_path, recwarn):
    parts = {path.name: path.read_bytes() for path in small_detector.iterdir()}
    whole = packed(parts=parts)
    facts = json.loads(parts["detector.json"])
    made = {
        "above": lambda: packed(parts=parts | {"../escaped": b"x"}),
        "extra": lambda: packed(parts=parts | {"code.py": b"x"}),
        "missing": lambda: packed(parts={name: parts[name] for name in parts if name != "README.md"}),
        "twice": lambda: whole.replace(b"README.md", b"head.safe"),
        "compressed": lambda: packed(parts=parts, compression=zipfile.ZIP_DEFLATED),
        "cut": lambda: whole[: len(whole) // 2],
        "damaged": lambda: packed(parts=parts | {"detector.json": json.dumps(facts | {"format": 99})}),
        "no archive": lambda: b"not an archive",
    }[how]()
    with pytest.raises(CheckpointError) as caught:
        MadCLIP.from_files(made, "cpu")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.soak
def test_any_flipped_bit_is_seen_or_does_not_matter(small_detector, fitted, soak):
    whole = packed(parts={path.name: path.read_bytes() for path in small_detector.iterdir()})
    rng = np.random.default_rng(0)
    # Headers stand at the beginning and at the end; what lies between is covered by their checksums.
    places = [*rng.integers(0, 60, soak(400)), *rng.integers(len(whole) - 260, len(whole), soak(400))]
    for place in [*places, *rng.integers(0, len(whole), soak(100))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        with suppress(CheckpointError):
            loaded = MadCLIP.from_files(bytes(damaged), "cpu")
            pairs = zip(fitted.state.head.parameters(), loaded.state.head.parameters(), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)


def test_one_that_is_not_fitted_travels_as_its_arguments(new, small_recipe, small_backbone):
    back = pickle.loads(pickle.dumps(new))
    assert back.get_params() == new.get_params()
    assert pickle.loads(pickle.dumps(MadCLIP("paper"))).get_params() == MadCLIP("paper").get_params()
    given = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain")
    back = pickle.loads(pickle.dumps(given))
    assert back.backbone is not small_backbone
    assert (back.backbone.fingerprint, back.recipe) == (small_backbone.fingerprint, small_recipe)
    params, fingerprint = given.__reduce__()[1]
    with pytest.raises(CheckpointError, match="stand-in: holds another backbone here"):
        MadCLIP.from_params(params, fingerprint[::-1])


def test_how_a_detector_shows_itself(new, fitted, small_recipe):
    assert repr(MadCLIP()) == "MadCLIP('fused', backbone='tiny+lite0', objective='medical image', not fitted)"
    assert repr(new) == (
        "MadCLIP('madclip' with changes, backbone='stand-in', objective='Brain', device='cpu', dtype='float32', "
        "not fitted)"
    )
    threshold = f"{fitted.calibration.threshold:.4f}"
    assert repr(fitted).endswith(f"learned from 4 normal and 4 abnormal images, threshold {threshold})")
    assert torch.equal(fitted.state.text, pickle.loads(pickle.dumps(fitted)).state.text)
