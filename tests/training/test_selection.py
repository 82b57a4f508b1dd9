"""Choosing an epoch: every watched image is read and encoded once, and the kept weights are the best epoch's."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from madclip import MadCLIP
from madclip.data import load_dataset
from madclip.errors import DataError, RecipeError
from madclip.fitting import Run
from madclip.head.head import Head
from madclip.training import selection
from madclip.training.encode import prepare
from madclip.training.fit import fit_head
from madclip.training.shots import draw_samples, read_shots


@pytest.mark.parametrize("select", ["val", "test-best"])
def test_watched_images_are_encoded_once_whatever_the_epochs(
    select, make_images, tmp_path, small_recipe, small_backbone, monkeypatch
):
    data = make_images(tmp_path / "data", {"valid": (8, 8), "test": (6, 6)})
    seen = []
    plain = selection.encode_patches

    def counted(backbone, view, pixels):
        seen.append(len(pixels))
        return plain(backbone, view, pixels)

    monkeypatch.setattr(selection, "encode_patches", counted)
    recipe = small_recipe.replace(epochs=4)
    detector = MadCLIP(recipe, backbone=small_backbone, objective="Brain")
    detector.fit(data, shots=4, folds=0, run=Run(select=select))
    watched = len(load_dataset(data).test_pool) if select == "test-best" else len(detector.provenance.selection_images)
    assert sum(seen) == watched


def test_the_kept_weights_are_those_of_the_epoch_that_scores_best(small_data, small_recipe, small_backbone):
    """Against heads of every epoch kept by hand, scored through `predict`."""
    pool = load_dataset(small_data).test_pool
    labels, kept = [sample.label for sample in pool], {}
    recipe = small_recipe.replace(epochs=3)
    detector = MadCLIP(recipe, backbone=small_backbone, objective="Brain")
    detector.fit(small_data, shots=4, run=Run(select="test-best"))
    for epochs in (1, 2, 3):
        # The schedule depends on the number of epochs, so each epoch's weights are taken from the whole fit.
        weights = {}

        def keep(epoch, head, wanted=epochs, found=weights):
            if epoch == wanted:
                found.update({name: value.clone() for name, value in head.state_dict().items()})

        shots = read_shots(draw_samples(load_dataset(small_data), 4, 0), recipe.view)
        other = MadCLIP(recipe, backbone=small_backbone, objective="Brain").fit(small_data, shots=4, folds=0)
        head = other.state.head
        fresh = Head(recipe, small_backbone, "Brain", seed=0)
        fit_head(fresh, prepare(shots, small_backbone, recipe), recipe, on_epoch=keep)
        head.load_state_dict(weights)
        other.fitted = type(other.state)(head, recipe, other.provenance)
        scores = [one.score for one in other.predict([sample.image for sample in pool])]
        kept[epochs] = (roc_auc_score(labels, scores), weights)
    best = max(kept, key=lambda epoch: (kept[epoch][0], -epoch))
    assert detector.provenance.selected_epoch == best
    found = detector.state.head.state_dict()
    assert all(torch.equal(found[name], value) for name, value in kept[best][1].items())
    assert f"{kept[best][0]:.4f}" in detector.provenance.selected_on


def test_what_cannot_select(small_data, small_recipe, small_backbone, tmp_path):
    new = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain")
    samples = load_dataset(small_data).shot_pool
    with pytest.raises(RecipeError, match="cannot be resumed"):
        new.fit(small_data, shots=4, run=Run(select="val", resume=True, checkpoint=tmp_path / "state"))
    with pytest.raises(DataError, match="no test images"):
        new.fit(samples, run=Run(select="test-best"))
    images = [torch.rand(3, 64, 64) for _ in range(8)]
    with pytest.raises(DataError, match="needs files"):
        new.fit(images, [0, 1] * 4, run=Run(select="val"))
