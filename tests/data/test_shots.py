from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madclip.data import Sample, draw_shots, folds, published_shots
from madclip.data.shots import _published
from madclip.errors import DataError, RecipeError


def make(label, count, patient=None, prefix=""):
    return [
        Sample(Path(f"/set/{label}/{prefix}{index:03d}.png"), label, patient=patient and patient(index))
        for index in range(count)
    ]


@st.composite
def pools(draw):
    """Samples of up to 12 patients, some without a patient, with at least 4 of each class."""
    owners = draw(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), min_size=4, max_size=40))
    samples = [
        Sample(Path(f"/set/{index:03d}.png"), label, patient=None if owner == 0 else f"P{owner}")
        for index, (owner, label) in enumerate(owners)
    ]
    return [*samples, *make(0, 4), *make(1, 4)]


@given(pool=pools(), seed=st.integers(0, 50), order=st.randoms(), shots=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_a_draw_has_the_right_counts_and_ignores_the_order(pool, seed, order, shots):
    drawn = draw_shots(pool, shots, seed)
    assert [sample.label for sample in drawn] == [0] * shots[0] + [1] * shots[1]
    assert len(set(drawn)) == sum(shots)
    shuffled = list(pool)
    order.shuffle(shuffled)
    assert draw_shots(shuffled, shots, seed) == drawn


@given(pool=pools(), seed=st.integers(0, 50))
def test_smaller_draws_are_part_of_larger_ones(pool, seed):
    small, large = draw_shots(pool, 2, seed), draw_shots(pool, 4, seed)
    assert small == (*large[:2], *large[4:6])


@given(pool=pools(), seed=st.integers(0, 50), shots=st.integers(1, 4))
def test_patients_stay_apart(pool, seed, shots):
    # Four images a side have no patient, so keeping apart is always possible.
    drawn = draw_shots(pool, shots, seed)
    sides = [{sample.patient for sample in drawn if sample.label == label and sample.patient} for label in (0, 1)]
    assert not sides[0] & sides[1]


def test_as_many_patients_as_possible():
    pool = make(0, 40, lambda index: f"N{index % 10}") + make(1, 40, lambda index: f"A{index // 8}")
    drawn = draw_shots(pool, (10, 10), 0)
    assert len({sample.patient for sample in drawn[:10]}) == 10
    assert sorted(Counter(sample.patient for sample in drawn[10:]).values()) == [2] * 5


@pytest.mark.parametrize("seed", range(5))
def test_every_patient_with_both_kinds(seed):
    """As in brain MR, where normal slices come from the patients with tumours."""
    pool = make(0, 36, lambda index: f"P{index % 18}") + make(1, 36, lambda index: f"P{index % 18}")
    drawn = draw_shots(pool, 16, seed)
    assert not {sample.patient for sample in drawn[:16]} & {sample.patient for sample in drawn[16:]}


def test_patients_on_both_sides_only_when_it_cannot_be_helped():
    pool = make(0, 4, lambda index: f"P{index // 2}") + make(1, 4, lambda index: f"P{index // 2}")
    apart = draw_shots(pool, 2, 0)
    assert {sample.patient for sample in apart[:2]} != {sample.patient for sample in apart[2:]}
    assert len(set(draw_shots(pool, 4, 0))) == 8


def test_seeds_differ():
    pool = make(0, 30) + make(1, 30)
    assert len({draw_shots(pool, 4, seed) for seed in range(20)}) == 20
    drawn = Counter(sample for seed in range(300) for sample in draw_shots(pool, 4, seed))
    assert min(drawn[sample] for sample in pool) > 15  # 40 expected


def test_names_decide_not_where_the_set_lies():
    pool = make(0, 9) + make(1, 9)
    moved = [Sample(Path("/elsewhere") / sample.image.path.relative_to("/set"), sample.label) for sample in pool]
    assert [sample.image.name for sample in draw_shots(pool, 3, 1)] == [
        sample.image.name for sample in draw_shots(moved, 3, 1)
    ]


def test_too_few_images():
    with pytest.raises(DataError, match="16 normal and 16 abnormal asked for, 20 normal and 9 abnormal there"):
        draw_shots(make(0, 20) + make(1, 9), 16, 0)
    with pytest.raises(RecipeError, match="at least 1 normal image"):
        draw_shots(make(0, 20) + make(1, 9), (0, 4), 0)
    alone = draw_shots(make(0, 20) + make(1, 9), (4, 0), 0)
    assert [sample.label for sample in alone] == [0] * 4
    assert draw_shots(make(0, 20) + make(1, 9), (2, 0), 0) == alone[:2]


@pytest.mark.parametrize("source", ["mvfa", "madclip"])
def test_published_lists_are_complete(source):
    lists = _published()[source]
    assert set(lists) == {"Brain", "Liver", "Retina_RESC", "Retina_OCT2017", "Chest", "Histopathology"}
    for by_shots in lists.values():
        for shots, sides in by_shots.items():
            assert {kind: len(set(names)) for kind, names in sides.items()} == dict.fromkeys(
                ("normal", "abnormal"), int(shots)
            )


def published_files(source, name, shots):
    sides = _published()[source][name][str(shots)]
    return [
        Sample(Path(f"/set/{kind}/{file}"), label)
        for label, kind in enumerate(("normal", "abnormal"))
        for file in sides[kind]
    ]


@pytest.mark.parametrize(("source", "name"), [("mvfa", "Brain"), ("madclip", "Retina_OCT2017"), ("madclip", "Chest")])
def test_published_shots_are_found(source, name):
    pool = published_files(source, name, 4)
    expected = tuple(pool)
    others = [*make(0, 5, prefix="other"), *make(1, 5, prefix="other"), *reversed(pool)]
    assert published_shots(source, name, 4, others) == expected
    converted = [Sample(sample.image.path.with_suffix(".tif"), sample.label) for sample in pool]
    assert published_shots(source, name, 4, converted) == tuple(converted)


def test_published_shots_that_are_not_there():
    pool = published_files("mvfa", "Brain", 2)
    with pytest.raises(DataError, match=f"2 images .* are missing: {pool[1].image.name}, {pool[3].image.name}"):
        published_shots("mvfa", "Brain", 2, [pool[0], pool[2]])
    swapped = [Sample(sample.image, 1 - sample.label) for sample in pool]
    with pytest.raises(DataError, match="4 images"):
        published_shots("mvfa", "Brain", 2, swapped)
    with pytest.raises(DataError, match="is there twice"):
        published_shots("mvfa", "Brain", 2, [*pool, Sample(Path("/other") / pool[0].image.name, 0)])
    for arguments, message in (
        (("clip", "Brain", 2), "source 'clip'; there are: mvfa, madclip"),
        (("mvfa", "Knee", 2), "set 'Knee'; there are: Brain"),
        (("mvfa", "Brain", 3), "number of shots '3'; there are: 2, 4, 8, 16"),
    ):
        with pytest.raises(RecipeError, match=message):
            published_shots(*arguments, pool)


@given(pool=pools(), seed=st.integers(0, 20), k=st.integers(2, 4))
def test_folds_partition_and_keep_patients_together(pool, seed, k):
    parts = folds(pool, k, seed)
    assert len(parts) == k
    assert sorted((sample for part in parts for sample in part), key=str) == sorted(pool, key=str)
    homes = [{sample.patient for sample in part} - {None} for part in parts]
    assert len(set().union(*homes)) == sum(len(home) for home in homes)
    assert folds(list(reversed(pool)), k, seed) == parts


@pytest.mark.parametrize("k", [2, 4, 5])
def test_folds_are_stratified(k):
    pool = make(0, 16) + make(1, 16)
    for part in folds(pool, k, 0):
        for label in (0, 1):
            assert 16 // k <= sum(sample.label == label for sample in part) <= -(-16 // k)


def test_folds_need_patients():
    pool = make(0, 16) + make(1, 16, lambda index: f"P{index % 2}")
    with pytest.raises(DataError, match="4 folds need abnormal images of 4 patients; there are 2"):
        folds(pool, 4, 0)
    with pytest.raises(RecipeError, match="at least 2"):
        folds(pool, 1, 0)


@pytest.mark.parametrize(
    ("patient", "seed", "shots", "folded"),
    [
        (lambda index: f"P{index // 3}", 0, "4 23 10 2 16 27 18 6", "0 1 2 12"),
        (lambda index: f"P{index // 3}", 1, "3 6 23 9 28 26 14 1", "9 10 11 15"),
        (None, 0, "16 27 20 8 12 4 21 22", "1 4 12 16"),
        (None, 1, "25 24 27 16 28 14 1 3", "0 1 12 18"),
    ],
)
def test_draws_are_those_of_version_0_1(patient, seed, shots, folded):
    # As d9b8c5d drew them, before groups were patients or volumes: detectors and tables rest on these draws.
    pool = [*make(0, 30, patient), *make(1, 30, patient)]
    drawn = [int(sample.image.path.stem) for sample in draw_shots(pool, 4, seed)]
    assert drawn == [int(number) for number in shots.split()]
    first = [int(sample.image.path.stem) for sample in folds(pool, 4, seed)[0][:4]]
    assert first == [int(number) for number in folded.split()]


@given(st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_no_fold_takes_all_of_a_class(seed):
    """Patients with images of both classes, some with many: whatever is held out, both classes stay to learn from."""
    generator = np.random.default_rng(seed)
    samples = [
        Sample(Path(f"{patient}-{label}-{i}.png"), label, patient=f"p{patient}")
        for patient in range(generator.integers(2, 5))
        for label in (0, 1)
        for i in range(generator.integers(0, 9))
    ]
    try:
        parts = folds(samples, 2, 0)
    except DataError:
        return
    for part in parts:
        assert {sample.label for sample in samples if sample not in part} == {0, 1}
