import pytest
from written import write

from madclip.data import Reading, errors_of, load_dataset
from madclip.data.samples import said_of_patients
from madclip.errors import RecipeError


def write_names(folder, normal, abnormal):
    for label, names in (("good", normal), ("Ungood", abnormal)):
        for name in names:
            write(folder / f"valid/{label}/img/{name}.png")
    return folder


def load(folder, rule="auto"):
    """The patient of every image, by its path below the class folder, and what is said of patients."""
    dataset = load_dataset(folder, Reading(patients=rule))
    found = {}
    for sample in dataset.samples:
        key = sample.image.path.with_suffix("").as_posix().split("/img/")[1]
        assert found.get(key, sample.patient) == sample.patient
        found[key] = sample.patient
    return found, said_of_patients(dataset)


def numbered(groups, each=2):
    return [f"{group}_{number}" for group in groups for number in range(each)]


NORMAL = [f"{number:05}" for number in range(12, 15)]
ABNORMAL = ["S_7", "S_8", "00020"]


def test_patients_from_names(tmp_path):
    root = write_names(tmp_path, numbered(NORMAL), numbered(ABNORMAL))
    expected = {name: name.rpartition("_")[0] for name in numbered([*NORMAL, *ABNORMAL])}
    assert load(root) == (expected, "6 patients, from the names <patient>_<slice>")
    dataset = load_dataset(root)
    assert (dataset.patients_from, dataset.patients_guessed) == ("names", True)
    assert set(load(root, "none")[0].values()) == {None}
    assert load(root, "none")[1] == "patients unknown: every image counts as a patient of its own (as asked for)"


def test_patients_by_a_rule(tmp_path):
    root = write_names(tmp_path, ["00012_60", "00012_99", "S_7_1"], ["00013_60"])
    found, said = load(root, r"^(0+\d+)_")
    assert found == {"00012_60": "00012", "00012_99": "00012", "S_7_1": None, "00013_60": "00013"}
    assert said == r"2 patients, from the names by the rule ^(0+\d+)_; of 1 image the patient is unknown"
    assert load(root, r"(x?)(?P<patient>\d)_")[0] == {"00012_60": "2", "00012_99": "2", "S_7_1": "7", "00013_60": "3"}
    assert not load_dataset(root, Reading(patients=r"^(0+\d+)_")).patients_guessed
    assert load(root, "^(X)")[1].endswith("(the rule ^(X) finds none, as in 00013_60)")


@pytest.mark.parametrize(
    ("normal", "abnormal", "why"),
    [
        # What was reported: a year, a scanner, a sequence, a modality with a year.
        (numbered(["2023"], 8), numbered(["2024"], 8), "do not all hold a patient's number"),
        (numbered(["scanner1"], 8), numbered(["scanner2"], 8), "do not all hold a patient's number"),
        (numbered(["T1"], 8), numbered(["T2"], 8), "do not all hold a patient's number"),
        (numbered(["CR_2021", "CR_2022"], 8), numbered(["CR_2023"], 8), "do not all hold a patient's number"),
        # The same kinds, more of them.
        (numbered(map(str, range(2011, 2018))), numbered(map(str, range(2014, 2024))), "do not all hold"),
        (numbered([f"2021-{m:02}" for m in range(1, 8)]), numbered(["2021-11", "2021-12"]), "do not all hold"),
        (numbered([f"202101{d:02}" for d in range(1, 20)]), numbered(["20210202", "20210203"]), "do not all hold"),
        (numbered([f"site{n}" for n in range(9)]), numbered([f"site-{n}" for n in range(9)]), "do not all hold"),
        (numbered([f"fold{n}" for n in range(5)]), numbered([f"grade{n}" for n in range(5)]), "do not all hold"),
        (numbered([f"Siemens{n}" for n in range(5)]), numbered([f"GE{n}" for n in range(5)]), "do not all hold"),
        (["chest_1", "chest_2"], ["virus_1", "virus_2"], "do not all hold"),
        (["norm_a_1", "norm_a_2"], ["dr_a_1", "dr_a_2"], "do not all hold"),
        # Words that count something else, with their number beside or apart from them.
        *(
            (numbered([f"{word}{n}" for n in range(8)]), numbered([f"{word}{n}" for n in range(8)]), "do not all hold")
            for word in ("lot", "slice", "SE", "disease", "Series", "IM", "lot ", "slice-", "Batch.", "grade ", "site_")
        ),
        (numbered([f"normal{n}" for n in range(8)]), numbered([f"tumour{n}" for n in range(8)]), "do not all hold"),
        # Dates in every order, with names of months, with times.
        *(
            (
                numbered([day.format(d) for d in range(10, 18)]),
                numbered([day.format(d) for d in range(16, 26)]),
                "do not",
            )
            for day in (
                "{}012023",
                "01{}2023",
                "2301{}",
                "{}0123",
                "{}Jan2023",
                "2023Mar{}",
                "202301{}101500",
                "{}-01-2023",
            )
        ),
        (numbered([f"covid{n}" for n in range(8)]), numbered([f"normal{n}" for n in range(8)]), "do not all hold"),
        # Too few, or nearly all of a class in one.
        (numbered(["A1", "A2"], 4), numbered(["B1", "B2", "B3"], 4), "form 5 groups only"),
        (
            numbered([f"A{n}" for n in range(9)]),
            [*numbered(["B1"], 9), "B2_1"],
            "have most abnormal images in one group",
        ),
        ([*numbered(["A1"], 9), "A2_1"], numbered([f"B{n}" for n in range(9)]), "have most normal images in one group"),
        # As many as images: nothing to keep together.
        (numbered(["1", "2", "3", "4"], 1), numbered(["5", "6", "7"], 1), "are all different"),
    ],
)
def test_names_that_are_not_safely_patients(tmp_path, normal, abnormal, why):
    root = write_names(tmp_path, normal, abnormal)
    found, said = load(root)
    assert set(found.values()) == {None}
    assert said.startswith("patients unknown: every image counts as a patient of its own (the names ")
    assert why in said
    assert load_dataset(root).patients_from == "none"


def test_names_of_which_some_have_no_slice_say_nothing(tmp_path):
    root = write_names(tmp_path, numbered(NORMAL), [*numbered(ABNORMAL), "extra"])
    assert load(root)[1] == "patients unknown: every image counts as a patient of its own"


def test_sequences_and_dates_are_no_part_of_a_patient(tmp_path):
    root = write_names(
        tmp_path, numbered(["T1_P1", "T2_P1", "T1_P2", "T1_P3"]), numbered(["FLAIR_P4", "T1_P5", "T2_P6"])
    )
    found, said = load(root)
    assert said == "6 patients, from the names <patient>_<slice>"
    assert found["T1_P1_0"] == found["T2_P1_1"] == "P1"
    dated = write_names(
        tmp_path / "dated", numbered([f"2021-P{n}" for n in range(4)]), numbered(["2022-P0", "2022-P8", "2022-P9"])
    )
    assert {*load(dated)[0].values()} == {"P0", "P1", "P2", "P3", "P8", "P9"}


def test_patients_numbered_past_1900_are_patients(tmp_path):
    root = write_names(tmp_path, numbered(["0007", "1950", "2001"]), numbered(["1999", "2450", "0031"]))
    assert load(root)[1] == "6 patients, from the names <patient>_<slice>"


@pytest.mark.parametrize(
    "template",
    [
        "P0{}",
        "case{}",
        "patient {}",
        "lot3_P{}",
        "SE2 P{}",
        "normal_01{}",
        "P{}_15012023",
        "N{}",
        "10000{}",
        "9912200{}",
    ],
)
def test_patients_beside_words_and_dates_that_are_none(tmp_path, template):
    """Six patients with three images each, however they are named beside what does not tell patients apart."""
    root = write_names(
        tmp_path,
        numbered([template.format(n) for n in range(3)], 3),
        numbered([template.format(n) for n in (7, 8, 9)], 3),
    )
    dataset = load_dataset(root)
    assert (dataset.patients_from, len(dataset.patients)) == ("names", 6)
    for number in (0, 1, 2, 7, 8, 9):
        name = template.format(number)
        assert len({sample.patient for sample in dataset.samples if name in sample.image.path.name}) == 1


@pytest.mark.parametrize(
    "template",
    ["P{}/img0", "P{}/study1/img0", "site1/P{}/img0", "2021/P{}/a", "T1/case {}/x", "train part 1/{:03}/0001_1"],
)
def test_patient_folders(tmp_path, template):
    folder, name = template.rsplit("/", 1)
    normal = [f"{folder.format(number)}/{name}{end}" for number in range(4) for end in "ab"]
    abnormal = [f"{folder.format(number)}/{name}{end}" for number in range(2, 7) for end in "cd"]
    root = write_names(tmp_path, normal, abnormal)
    found, said = load(root)
    assert said == "7 patients, from the folders below the class folders"
    for number in range(7):
        within = {patient for key, patient in found.items() if key.startswith(f"{folder.format(number)}/")}
        assert len(within) == 1
    assert load_dataset(root).patients_from == "folders"


@pytest.mark.parametrize(
    "folders", [["2021", "2022"], [f"scanner{n}" for n in range(8)], ["T1", "T2"], ["left", "right"]]
)
def test_folders_that_are_not_safely_patients(tmp_path, folders):
    names = [f"{folder}/img{end}" for folder in folders for end in "abc"]
    root = write_names(tmp_path, names, [f"{name}x" for name in names])
    found, said = load(root)
    assert set(found.values()) == {None}
    assert "(the folders below the classes " in said
    asked, said = load(root, "folder")
    assert asked == {name: name.split("/")[0] for name in found}
    assert said == f"{len(folders)} patients, from the folders below the class folders"


def test_a_patient_folder_may_be_in_both_classes_and_splits(tmp_path):
    for split in ("valid", "test"):
        for kind in ("normal", "abnormal"):
            for number in range(6):
                size = (10 + number, 10 + len(split) + 10 * len(kind))
                write(tmp_path / split / kind / f"P{number}/img.png", size=size)
    dataset = load_dataset(tmp_path)
    assert len(dataset.patients) == 6
    assert errors_of(dataset) == ()
    named = load_dataset(tmp_path, Reading(patients="folder"))
    assert [(problem.kind, len(problem.files)) for problem in errors_of(named)] == [("patient_across", 6)]


@pytest.mark.parametrize(
    ("rule", "message"),
    [("(", "neither auto, none, folder or header, nor a regular expression"), ("abc", "has no group")],
)
def test_bad_patient_rules(rule, message):
    with pytest.raises(RecipeError, match=message):
        Reading(patients=rule)
