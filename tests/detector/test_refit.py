"""Going on from a fitted head: what changes, what stays, and what is said about it."""

import pytest
import torch

from madclip import MadCLIP
from madclip.data.load import load_dataset
from madclip.data.samples import Sample
from madclip.errors import CheckpointError, DataError, RecipeError
from madclip.evaluation.protocol import evaluate
from madclip.fitting import Run
from madclip.training.fit import Checkpoint


@pytest.fixture
def detector(small_detector, small_backbone):
    return MadCLIP.load(small_detector, backbone=small_backbone)


@pytest.fixture
def shots(small_data):
    return load_dataset(small_data).shot_pool


@pytest.fixture
def images(small_data):
    return [sample.image for sample in load_dataset(small_data).test_pool]


def scores(detector, images):
    return torch.tensor([one.score for one in detector.predict(images)])


def test_the_same_shots_change_little(detector, shots, images):
    before = scores(detector, images)
    detector.refit(shots)
    after = scores(detector, images)
    assert not torch.equal(before, after)
    assert float((before - after).abs().max()) < 0.1


def test_same_seed_same_bytes(small_detector, small_backbone, shots):
    one, other = (MadCLIP.load(small_detector, backbone=small_backbone).refit(shots, seed=3) for _ in range(2))
    state = other.state.head.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state.head.state_dict().items())


def test_relabelling_turns_scores_around(detector, shots, images):
    flipped = [Sample(sample.image, 1 - sample.label, None, sample.patient) for sample in shots]
    known = torch.tensor([sample.label for sample in load_dataset(shots[0].image.path.parents[3]).test_pool])

    def gap():
        found = scores(detector, images)
        return float(found[known == 1].mean() - found[known == 0].mean())

    before = gap()
    for seed in range(6):
        detector.refit(flipped, seed=seed)
    assert gap() < before


def test_what_is_said_of_it(detector, shots, small_data, tmp_path, small_backbone):
    assert detector.calibration
    kept = detector.calibration
    detector.refit(shots[1:])
    assert detector.provenance.refits == 1
    assert detector.provenance.normal + detector.provenance.abnormal == len(shots) - 1
    assert detector.calibration is kept
    assert any("before it was refitted" in line for line in evaluate(detector, small_data).warnings)
    detector.save(tmp_path / "new")
    again = MadCLIP.load(tmp_path / "new", backbone=small_backbone).refit(shots)
    assert again.provenance.refits == 2


def test_new_thresholds_where_they_are_asked_for(detector, shots, small_data):
    kept = detector.calibration
    detector.refit(shots[1:-1], folds=2)
    assert detector.calibration
    assert detector.calibration != kept
    assert not any("refitted" in line for line in evaluate(detector, small_data).warnings)


def test_refuses(detector, shots, small_backbone, small_recipe):
    normal = [sample for sample in shots if not sample.label]
    before = {name: value.clone() for name, value in detector.state.head.state_dict().items()}
    with pytest.raises(DataError, match="needs normal and abnormal"):
        detector.refit(normal)
    assert all(torch.equal(value, before[name]) for name, value in detector.state.head.state_dict().items())
    with pytest.raises(RecipeError, match="not fitted"):
        MadCLIP(small_recipe, backbone=small_backbone).refit(shots)


def test_a_refit_learns_anew_what_looks_familiar(detector, shots):
    before = detector.state.familiarity
    detector.refit(shots[1:])
    assert detector.state.familiarity != before
    assert len(detector.state.familiarity.features) == len(shots) - 1


def test_the_check_needs_no_folds(small_recipe, small_backbone, shots):
    alone = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain").fit(shots, folds=0)
    folded = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain").fit(shots, folds=2)
    assert alone.state.familiarity == folded.state.familiarity
    assert alone.calibration is None
    assert "without folds" in alone.provenance.uncalibrated


def test_what_was_added_must_be_known(detector, small_recipe, small_backbone, shots, small_data):
    unknown = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain").fit(shots, folds=0)
    with pytest.raises(DataError, match="does not say what it was drawn from"):
        unknown.refit(small_data)
    assert unknown.refit(small_data, shots=2).provenance.refits == 1


def test_thresholds_stay_where_no_new_ones_can_be_made(detector, shots):
    kept = detector.calibration
    alone = [Sample(one.image, one.label, one.mask, "the same patient") for one in shots]
    detector.refit(alone, folds=2)
    assert detector.calibration == kept
    assert detector.provenance.calibrated_before_refit


def test_a_fit_whose_labels_changed_is_not_resumed(small_recipe, small_backbone, shots, tmp_path):
    def kill(stage, done, total, /, *, loss=None, part=""):
        if stage == "fit" and done == 2:
            raise KeyboardInterrupt

    state = tmp_path / "state"
    new = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain")
    plain = [Sample(one.image, one.label, None, one.patient) for one in shots]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("madclip.fitting.Checkpoint", lambda path, run, resume: Checkpoint(path, run, resume, 0.0))
        with pytest.raises(KeyboardInterrupt):
            new.fit(plain, folds=0, run=Run(checkpoint=state, progress=kill))
    assert state.exists()
    swapped = [Sample(one.image, 1 - one.label, None, one.patient) for one in plain]
    with pytest.raises(CheckpointError, match=r"another fit \(shots"):
        new.fit(swapped, folds=0, run=Run(checkpoint=state, resume=True))
    new.fit(plain, folds=0, run=Run(checkpoint=state, resume=True))
