from dataclasses import replace

import pytest

from madclip.benchmark.registry import all_sets, compare_counts, registered
from madclip.data.check import CheckReport
from madclip.data.shots import _published
from madclip.errors import RecipeError

BMAD = {
    "Brain_AD": "BrainMRI",
    "Liver_AD": "LiverCT",
    "Retina_RESC_AD": "RESC",
    "Retina_OCT2017_AD": "OCT17",
    "Chest_AD": "Chest",
    "Histopathology_AD": "HIS",
}


def report(**splits):
    counts = {split: {"normal": n, "abnormal": a, "masks": 0, "patients": 0} for split, (n, a) in splits.items()}
    return CheckReport("set", "bmad", "none", counts, {}, {}, ())


@pytest.mark.parametrize(("folder", "name"), BMAD.items())
def test_folders_of_bmad_are_aliases(folder, name):
    assert registered(folder).name == registered(name.upper()).name == name
    # The published lists of shots go by another name of the same set.
    assert registered(folder.removesuffix("_AD")).name == name


def test_every_published_list_belongs_to_a_registered_set():
    assert {registered(name).name for lists in _published().values() for name in lists} == set(BMAD.values())


def test_names_are_unambiguous():
    names = [name.lower() for entry in all_sets() for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))
    assert len(all_sets()) == 10


def test_an_unknown_set_names_the_known():
    with pytest.raises(RecipeError, match=r"'Knee'.*BrainMRI.*OCTDL"):
        registered("Knee")


def test_entries_are_consistent():
    for entry in all_sets():
        assert ("AS" in entry.tasks) == ("anomaly_mask" in entry.layout), entry.name
        assert all((entry.title, entry.objective, entry.licence, entry.obtain, entry.citation, entry.note)), entry.name
        for counts in entry.counts.values():
            if "normal" in counts:
                assert counts["normal"] + counts["abnormal"] == counts["total"], entry.name


def test_only_wrong_counts_are_reported():
    brain = registered("BrainMRI")
    assert compare_counts(brain, report(train=(7500, 0), valid=(39, 44), test=(640, 3075))) == ()
    # Nothing is learned from the training split: it may be left out.
    assert compare_counts(brain, report(valid=(39, 44), test=(640, 3075))) == ()
    (problem,) = compare_counts(brain, report(valid=(40, 43), test=(640, 3075)))
    assert (problem.severity, problem.kind) == ("error", "counts")
    assert "(BrainMRI, valid): 40 normal instead of 39, 43 abnormal instead of 44" in problem.message
    valid, test = compare_counts(brain, report(train=(7500, 0)))
    assert "0 total instead of 83" in valid.message
    assert "0 total instead of 3715" in test.message


def test_only_the_total_is_compared_where_classes_are_not_known():
    oct17 = registered("OCT17")
    assert compare_counts(oct17, report(valid=(16, 16), test=(500, 468))) == ()
    assert len(compare_counts(oct17, report(valid=(16, 16), test=(500, 469)))) == 1
    assert compare_counts(replace(oct17, counts={}), report(test=(1, 1))) == ()
