import pytest
from written import write

from madclip.data import load_dataset
from madclip.errors import RecipeError


def write_names(folder, normal, abnormal):
    for label, names in (("good", normal), ("Ungood", abnormal)):
        for name in names:
            write(folder / f"valid/{label}/img/{name}.png")
    return folder


def patients(folder, **options):
    dataset = load_dataset(folder, **options)
    return {sample.image.path.stem: sample.patient for sample in dataset.samples}


def test_patients_from_names(tmp_path):
    root = write_names(tmp_path, ["00012_60", "00012_99", "S_7_1"], ["00013_60"])
    found = {"00012_60": "00012", "00012_99": "00012", "S_7_1": "S_7", "00013_60": "00013"}
    assert patients(root) == found
    assert load_dataset(root).patients_from == "names"
    assert set(patients(root, patient_from_name=None).values()) == {None}
    assert patients(root, patient_from_name=r"^(0+\d+)_") == found | {"S_7_1": None}
    assert patients(root, patient_from_name=r"(x?)(?P<patient>\d)_") == {
        "00012_60": "2",
        "00012_99": "2",
        "S_7_1": "7",
        "00013_60": "3",
    }


@pytest.mark.parametrize(
    ("normal", "abnormal"),
    [
        (["chest_1", "chest_2"], ["virus_1", "virus_2"]),  # no digit: words, not identifiers
        (["norm_a_1", "norm_a_2"], ["dr_a_1", "dr_a_2"]),
        (["img2_1", "img2_2", "img2_3"], ["img3_1"]),  # most images of one "patient"
        (["1_1", "2_1"], ["3_1", "4_1"]),  # as many as images: nothing to keep together
        (["1_1", "1_2"], ["2_1", "extra"]),
    ],
)
def test_names_that_say_nothing_about_patients(tmp_path, normal, abnormal):
    root = write_names(tmp_path, normal, abnormal)
    assert set(patients(root).values()) == {None}
    assert load_dataset(root).patients_from == "none"


@pytest.mark.parametrize(("rule", "message"), [("(", "not a regular expression"), ("abc", "has no group")])
def test_bad_patient_rules(tmp_path, rule, message):
    root = write_names(tmp_path, ["a"], ["b"])
    with pytest.raises(RecipeError, match=message):
        load_dataset(root, patient_from_name=rule)
