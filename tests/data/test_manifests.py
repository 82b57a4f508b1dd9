import csv
import json

import pytest
from written import listed, write, write_mask

from madclip.data import Reading, load_dataset
from madclip.data.drafts import draft_manifest
from madclip.data.ref import ImageRef
from madclip.data.samples import said_of_patients
from madclip.errors import DataError


def write_csv(folder, text, name="manifest.csv"):
    for stem in "abcd":
        write(folder / f"images/{stem}.png")
    write_mask(folder / "masks/b.png")
    (folder / name).write_text(text)
    return folder / name


def test_csv_manifest(tmp_path):
    text = (
        "\ufeffPath,Label,mask,patient,split\n"
        "images/b.png,abnormal,masks/b.png,P1,val\n"
        "images/a.png,0,,P1,train\n\n"
        f"{tmp_path}/images/c.png, 1 ,,,TEST\n"
    )
    path = write_csv(tmp_path, text)
    expected = [
        ("images/a.png", 0, None, "P1", "train"),
        ("images/b.png", 1, "masks/b.png", "P1", "valid"),
        ("images/c.png", 1, None, None, "test"),
    ]
    for root in (path, tmp_path):
        dataset = load_dataset(root)
        assert listed(dataset) == expected
        assert dataset.layout == dataset.patients_from == "manifest"


def test_jsonl_manifest_and_other_delimiters(tmp_path):
    rows = [{"image": "images/a.png", "label": 0, "patient": 7}, {"image": "images/b.png", "label": True, "mask": None}]
    path = write_csv(tmp_path, "\n".join(json.dumps(row) for row in rows) + "\n\n", "set.jsonl")
    expected = [("images/a.png", 0, None, "7", None), ("images/b.png", 1, None, None, None)]
    assert listed(load_dataset(path)) == expected
    path = write_csv(tmp_path, "label;patient;image\nnormal;7;images/a.png\nUngood;;images/b.png\n", "set.csv")
    assert listed(load_dataset(path)) == expected


BAD_MANIFESTS = {
    "": "first row must name the columns",
    "name,label\na,0\n": "first row must name the columns",
    "image,label\n": "no rows",
    "image,label\nimages/a.png,0\nimages/z.png,1\n": r"row 3: image .*z\.png does not exist",
    "image,label,mask\nimages/a.png,1,masks/z.png\n": r"row 2: mask .*z\.png does not exist",
    "image,label\nimages/a.png,maybe\n": "row 2: label 'maybe' is unknown",
    "image,label\nimages/a.png,\n": "row 2: label '' is unknown",
    "image,label\n,1\n": "row 2: no image",
    "image,label,split\nimages/a.png,0,holdout\n": "row 2: split 'holdout' is unknown",
    "image,label\nimages/a.png,0,9\n": "row 2: not as many fields",
    "image,label\nimages/a.png\n": "row 2: not as many fields",
    "image,label\nimages/a.png,0\nimages/a.png,1\n": "row 3: .* has an earlier row",
    'image,label\n"images/a.png,0\n': "not valid CSV",
    "image,label\nimages/a.png,0\n": "no abnormal images",
    "image,label\nimages/a.png,1\n": "no normal images",
}


@pytest.mark.parametrize("text", BAD_MANIFESTS)
def test_bad_csv_manifests(tmp_path, text):
    write_csv(tmp_path, text)
    with pytest.raises(DataError, match=BAD_MANIFESTS[text]) as caught:
        load_dataset(tmp_path)
    assert "\n" not in str(caught.value)
    assert "manifest.csv" in str(caught.value) or "no " in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'image': 1}", "row 1: not valid JSON"),
        ("[1]", "row 1: expected an object"),
        ('{"label": 1}', "row 1: no image"),
    ],
)
def test_bad_jsonl_manifests(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        load_dataset(write_csv(tmp_path, line, "manifest.jsonl"))


def test_manifests_that_cannot_be_read(tmp_path):
    (tmp_path / "manifest.csv").write_bytes(b"image,label\n\x81\xfe\n")
    with pytest.raises(DataError, match="cannot be read as text; save it as CSV UTF-8"):
        load_dataset(tmp_path)
    (tmp_path / "manifest.jsonl").write_text("")
    with pytest.raises(DataError, match="name the one to use"):
        load_dataset(tmp_path)
    (tmp_path / "readme.md").write_text("")
    with pytest.raises(DataError, match=r"manifest named \.csv or \.jsonl"):
        load_dataset(tmp_path / "readme.md")


ROWS = "image,label,mask,patient\nimages/a.png,0,,M\u00fcller\nimages/b.png,1,masks/b.png,7\n"
EXPECTED = [("images/a.png", 0, None, "M\u00fcller", None), ("images/b.png", 1, "masks/b.png", "7", None)]


@pytest.mark.parametrize(
    "content",
    [
        ROWS.encode(),
        ROWS.encode("utf-8-sig"),
        ROWS.encode("cp1252"),
        ROWS.encode("utf-16"),
        ROWS.replace(",", "\t").encode("utf-16"),  # Excel's "Unicode text"
        ROWS.encode("utf-16-le"),
        ROWS.replace("\n", "\r\n").encode(),
        ("sep=;\r\n" + ROWS.replace(",", ";")).encode(),
        (ROWS + ",,,\n , ,,\n\n").encode(),  # rows that were cleared
        (ROWS.replace("\n", ",,\n") + ",,,,,\n").encode(),  # columns that were
        ROWS.replace("images/", "images\\").encode(),
        ROWS.replace("images/", ".\\images\\").replace("masks/", "masks\\").encode(),
        ROWS.replace("image,", "Image Path,").encode(),
        ROWS.replace("image,", "filename,").encode(),
        ROWS.replace("image,", "file,").encode(),
        ROWS.replace("image,", "file-name,").encode(),
        ROWS.replace(",1,", ",True,").replace(",0,", ",False,").encode(),
        ROWS.replace(",1,", ",1.0,").replace(",0,", ",benign,").encode(),
        ROWS.replace(",1,", ",yes,").replace(",0,", ",NO,").encode(),
        ROWS.replace(",7", ",7.0").encode(),
        ROWS.replace("images/a", "Images/A")
        .replace("masks/b.png", "masks/B.PNG")
        .replace("Images/", "images/")
        .encode(),
        ROWS.replace(",mask,", ",mask,frame,")
        .replace("0,,", "0,,,")
        .replace("masks/b.png,", "masks/b.png,nan,")
        .encode(),
    ],
)
def test_tables_as_programs_write_them(tmp_path, content):
    write_csv(tmp_path, "").write_bytes(content)
    dataset = load_dataset(tmp_path)
    assert listed(dataset) == EXPECTED
    assert said_of_patients(dataset) == "2 patients, from the manifest"


def test_patients_that_are_unknown_and_numbers_that_are_the_same(tmp_path):
    names = [float("nan"), None, "", "NaN", "None", "<NA>", 1, 1.0, "1.0", "01", True]
    rows = []
    for number, patient in enumerate(names):
        write(tmp_path / f"{number:02}.png")
        rows.append({"image": f"{number:02}.png", "label": number % 2, "patient": patient, "mask": float("nan")})
    (tmp_path / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    dataset = load_dataset(tmp_path)
    expected = [None] * 6 + ["1", "1", "1", "01", "1"]
    assert [sample.patient for sample in dataset.samples] == expected
    assert said_of_patients(dataset) == "2 patients, from the manifest; of 6 images the patient is unknown"
    cells = ["nan", "", "", "NaN", "None", "NA", "1", "1.0", "1.00", "01", "1"]
    lines = [f"{number:02}.png,{number % 2},{cell}" for number, cell in enumerate(cells)]
    (tmp_path / "set.csv").write_text("\n".join(["image,label,patient", *lines]))
    assert [sample.patient for sample in load_dataset(tmp_path / "set.csv").samples] == expected


def test_frames_of_one_file(tmp_path):
    write(tmp_path / "volume.tif")
    write(tmp_path / "lesions.tif")
    text = "image,frame,label,mask,mask_frame\nvolume.tif,10,1,lesions.tif,3\nvolume.tif,2,0,,\nvolume.tif,3.0,0,,\n"
    (tmp_path / "manifest.csv").write_text(text)
    dataset = load_dataset(tmp_path)
    image, mask = tmp_path / "volume.tif", tmp_path / "lesions.tif"
    assert [(s.image, s.label, s.mask) for s in dataset.samples] == [
        (ImageRef(image, 2), 0, None),
        (ImageRef(image, 3), 0, None),
        (ImageRef(image, 10), 1, ImageRef(mask, 3)),
    ]
    assert {s.group for s in dataset.samples} == {f"patient {ImageRef(image).digest()}"}
    for bad in ("-1", "first", "1.5"):
        (tmp_path / "manifest.csv").write_text(f"image,frame,label\nvolume.tif,{bad},0\n")
        with pytest.raises(DataError, match=f"row 2: frame '{bad}' is not a whole number from 0"):
            load_dataset(tmp_path)
    (tmp_path / "manifest.csv").write_text("image,frame,label\nvolume.tif,1,0\nvolume.tif,1,1\n")
    with pytest.raises(DataError, match=r"row 3: .*volume\.tif#1 has an earlier row"):
        load_dataset(tmp_path)


def test_all_missing_files_are_counted(tmp_path):
    rows = [f"images/{name}.png,{label},masks/{name}.png" for name, label in zip("awxyz", "01111", strict=True)]
    path = write_csv(tmp_path, "image,label,mask\n" + "\n".join(rows))
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    names = [f"row 2: mask {tmp_path}/masks/a.png"]
    for number, name in ((3, "w"), (4, "x")):
        names += [f"row {number}: {kind} {tmp_path}/{kind}s/{name}.png" for kind in ("image", "mask")]
    assert str(caught.value) == f"{path}: 9 files do not exist: {', '.join(names)} and 4 more"


@pytest.mark.parametrize("name", ["list.xlsx", "list.xls", "list.ods", "really-a-workbook.csv"])
def test_workbooks_are_refused_with_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(DataError, match=rf"{name}: a workbook; save the sheet as CSV .* and give that file"):
        load_dataset(tmp_path / name)


def test_labels_that_are_named(tmp_path):
    path = write_csv(tmp_path, "image,label\nimages/a.png,NV\nimages/b.png,mel\nimages/c.png,BCC\nimages/d.png,nv\n")
    with pytest.raises(DataError, match=r"row 2: label 'NV' is unknown; .* --normal NAME or --abnormal NAME"):
        load_dataset(path)
    dataset = load_dataset(path, Reading(normal="nv", abnormal=("MEL", "bcc")))
    assert [sample.label for sample in dataset.samples] == [0, 1, 1, 0]


def test_two_columns_of_one_name_are_refused(tmp_path):
    write_csv(tmp_path, "image,label,Label\nimages/a.png,0,1\n")
    with pytest.raises(DataError, match="two columns are called label"):
        load_dataset(tmp_path)


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_draft_of_a_known_layout_reads_as_the_folder_does(tmp_path):
    write(tmp_path / "set/valid/good/img/P1_1.png")
    write(tmp_path / "set/valid/Ungood/img/P2, left_1.png")
    write_mask(tmp_path / "set/valid/Ungood/label/P2, left_1.png")
    before = listed(load_dataset(tmp_path / "set"))
    draft_manifest(tmp_path / "set", tmp_path / "set/manifest.csv")
    assert listed(load_dataset(tmp_path / "set")) == before
    assert load_dataset(tmp_path / "set").layout == "manifest"
    assert read_rows(tmp_path / "set/manifest.csv")[0] == {
        "image": "valid/Ungood/img/P2, left_1.png",
        "label": "abnormal",
        "mask": "valid/Ungood/label/P2, left_1.png",
        "patient": "",
        "split": "valid",
    }


@pytest.mark.parametrize("wrapped", ["", "archive/inner/"])
def test_a_draft_of_an_unknown_layout_holds_the_folders_names(tmp_path, wrapped):
    root = tmp_path / "set"
    for folder in ("NV", "MEL"):
        write(root / wrapped / folder / "a.png")
    write_mask(root / wrapped / "masks/MEL/a.png")
    write(root / "loose.png") if not wrapped else None
    out = tmp_path / "lists/draft.csv"
    out.parent.mkdir()
    counts = draft_manifest(root, out)
    assert counts == ({"MEL": 1, "NV": 1} if wrapped else {"MEL": 1, "NV": 1, "": 1})
    rows = read_rows(out)
    assert [(row["image"], row["label"], row["mask"]) for row in rows[:2]] == [
        (f"../set/{wrapped}MEL/a.png", "MEL", f"../set/{wrapped}masks/MEL/a.png"),
        (f"../set/{wrapped}NV/a.png", "NV", ""),
    ]
    if wrapped:
        assert [s.label for s in load_dataset(out, Reading(normal="NV", abnormal="MEL")).samples] == [1, 0]
    else:
        with pytest.raises(DataError, match="row 4: label '' is unknown"):
            load_dataset(out, Reading(normal="NV", abnormal="MEL"))


@pytest.mark.parametrize("split", ["", "train/"])
def test_a_draft_leaves_benign_beside_normal_to_be_filled_in(tmp_path, split):
    for folder in ("normal", "Benign", "malignant"):
        write(tmp_path / "set" / split / folder / "a.png")
    counts = draft_manifest(tmp_path / "set", tmp_path / "draft.csv")
    assert counts == {"": 1, "malignant": 1, "normal": 1}
    assert [row["label"] for row in read_rows(tmp_path / "draft.csv")] == ["", "malignant", "normal"]
    with pytest.raises(DataError, match="row 2: label '' is unknown"):
        load_dataset(tmp_path / "draft.csv")
    draft_manifest(tmp_path / "set", tmp_path / "draft.csv", Reading(abnormal="benign"))
    assert [sample.label for sample in load_dataset(tmp_path / "draft.csv").samples] == [1, 0]
    draft_manifest(tmp_path / "set", tmp_path / "draft.csv", Reading(abnormal=("benign", "malignant")))
    assert [sample.label for sample in load_dataset(tmp_path / "draft.csv").samples] == [1, 1, 0]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_label_that_may_be_normal_or_abnormal_has_to_be_named(tmp_path, suffix):
    path = tmp_path / f"list.{suffix}"

    def written(*names):
        rows = [{"image": f"{number}.png", "label": label} for number, label in enumerate(names)]
        text = "\n".join(map(json.dumps, rows))
        if suffix == "csv":
            text = "\n".join(["image,label", *(f"{row['image']},{row['label']}" for row in rows)])
        path.write_text(text)
        for row in rows:
            (tmp_path / row["image"]).write_bytes(b"x")

    written("normal", "benign", "malignant")
    with pytest.raises(DataError, match=rf"list\.{suffix}: .* benign, malignant, normal, 'benign' may be"):
        load_dataset(path)
    assert [s.label for s in load_dataset(path, Reading(normal="benign")).samples] == [0, 0, 1]
    assert [s.label for s in load_dataset(path, Reading(abnormal="benign/")).samples] == [0, 1, 1]
    for reading in (Reading(normal="sane"), Reading(abnormal=("malignant", "sane"))):
        with pytest.raises(DataError, match=r"no label 'sane' .* there are: benign, malignant, normal"):
            load_dataset(path, reading)
    written("benign", "malignant")
    assert [s.label for s in load_dataset(path).samples] == [0, 1]
    assert [s.label for s in load_dataset(path, Reading(normal="Benign/")).samples] == [0, 1]


@pytest.mark.parametrize(
    ("rule", "patients", "source"),
    [("auto", {"A", "B"}, "manifest"), ("none", {None}, "none"), ("^(P[0-9]+)", {"P1", "P2"}, "names")],
)
def test_patients_of_a_manifest_by_the_rule_that_is_asked_for(tmp_path, rule, patients, source):
    rows = ["image,label,patient"]
    for name, label, patient in (("P1_0", 0, "A"), ("P1_1", 1, "B"), ("P2_0", 0, "A"), ("P2_1", 1, "B")):
        (tmp_path / f"{name}.png").write_bytes(b"x")
        rows.append(f"{name}.png,{label},{patient}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    data = load_dataset(tmp_path, Reading(patients=rule))
    assert {sample.patient for sample in data.samples} == patients
    assert data.patients_from == source
