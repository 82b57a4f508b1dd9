import pytest
from written import listed, write, write_mask

from madclip.data import Reading, load_dataset, scan_dataset
from madclip.data.samples import said_of_unused
from madclip.errors import DataError, RecipeError


def unused(dataset):
    return [(dataset.name(one.path), one.kind) for one in dataset.unused]


@pytest.mark.parametrize("masks", ["anomaly_mask", "label"])
@pytest.mark.parametrize("images", ["img/", ""])
def test_bmad_layouts(tmp_path, masks, images):
    write(tmp_path / f"train/good/{images}t.png")
    for split in ("valid", "test"):
        write(tmp_path / f"{split}/good/{images}b.png")
        write(tmp_path / f"{split}/good/{images}a.png")
        write(tmp_path / f"{split}/Ungood/{images}c.png")
        write_mask(tmp_path / f"{split}/Ungood/{masks}/c.png")
    (tmp_path / "valid/.DS_Store").write_text("")
    write(tmp_path / "valid/good/._a.png")
    dataset = load_dataset(tmp_path)
    assert dataset.layout == "bmad"
    assert dataset.patients_from == "none"
    assert dataset.has_masks
    assert dataset.unused == ()
    assert dataset.passed_over == 2
    assert listed(dataset) == [
        (f"test/Ungood/{images}c.png", 1, f"test/Ungood/{masks}/c.png", None, "test"),
        (f"test/good/{images}a.png", 0, None, None, "test"),
        (f"test/good/{images}b.png", 0, None, None, "test"),
        (f"train/good/{images}t.png", 0, None, None, "train"),
        (f"valid/Ungood/{images}c.png", 1, f"valid/Ungood/{masks}/c.png", None, "valid"),
        (f"valid/good/{images}a.png", 0, None, None, "valid"),
        (f"valid/good/{images}b.png", 0, None, None, "valid"),
    ]
    assert dataset.splits == ("train", "valid", "test")
    assert dataset.shot_pool == dataset.split("valid")
    assert dataset.test_pool == dataset.split("test")
    assert len(dataset.normal) == 5
    assert len(dataset.abnormal) == 2


def test_masks_beside_the_class_folders_and_files(tmp_path):
    write(tmp_path / "valid/good/a.png")
    write(tmp_path / "valid/Ungood/b.png")
    write(tmp_path / "valid/Ungood/c.png")
    write_mask(tmp_path / "valid/anomaly_mask/b.png")
    write_mask(tmp_path / "valid/Ungood/c_mask.png")
    assert listed(load_dataset(tmp_path)) == [
        ("valid/Ungood/b.png", 1, "valid/anomaly_mask/b.png", None, "valid"),
        ("valid/Ungood/c.png", 1, "valid/Ungood/c_mask.png", None, "valid"),
        ("valid/good/a.png", 0, None, None, "valid"),
    ]


def test_plain_folders(tmp_path):
    write(tmp_path / "normal/site1/a.png")
    write(tmp_path / "normal/c.png")
    write(tmp_path / "Abnormal/site1/b.jpg")
    write(tmp_path / "Abnormal/c.tif")
    write(tmp_path / "Abnormal/d.png")
    write_mask(tmp_path / "masks/site1/b.png")
    write_mask(tmp_path / "masks/c.png")
    write_mask(tmp_path / "masks/lost.png")
    (tmp_path / "Abnormal/notes.txt").write_text("")
    write(tmp_path / "extra/e.png")
    dataset = load_dataset(tmp_path)
    assert dataset.layout == "folders"
    assert listed(dataset) == [
        ("Abnormal/c.tif", 1, "masks/c.png", None, None),
        ("Abnormal/d.png", 1, None, None, None),
        ("Abnormal/site1/b.jpg", 1, "masks/site1/b.png", None, None),
        ("normal/c.png", 0, None, None, None),
        ("normal/site1/a.png", 0, None, None, None),
    ]
    assert unused(dataset) == [
        ("Abnormal/notes.txt", "format"),
        ("extra", "not_a_class"),
        ("masks/lost.png", "no_image"),
    ]
    assert dataset.shot_pool == dataset.test_pool == dataset.samples


def test_anomalib_layout(tmp_path):
    write(tmp_path / "train/good/000.png")
    write(tmp_path / "test/good/000.png")
    for defect in ("crack", "stain"):
        write(tmp_path / f"test/{defect}/000.png")
        write_mask(tmp_path / f"ground_truth/{defect}/000_mask.png")
    dataset = load_dataset(tmp_path)
    assert dataset.layout == "anomalib"
    assert listed(dataset) == [
        ("test/crack/000.png", 1, "ground_truth/crack/000_mask.png", None, "test"),
        ("test/good/000.png", 0, None, None, "test"),
        ("test/stain/000.png", 1, "ground_truth/stain/000_mask.png", None, "test"),
        ("train/good/000.png", 0, None, None, "train"),
    ]


def test_one_mask_for_two_images_is_refused(tmp_path):
    write(tmp_path / "train/good/000.png")
    write(tmp_path / "train/crack/000.png")
    write(tmp_path / "test/good/000.png")
    write(tmp_path / "test/crack/000.png")
    write_mask(tmp_path / "ground_truth/crack/000.png")
    with pytest.raises(DataError, match=r"000\.png: is the mask of two images"):
        load_dataset(tmp_path)


def test_two_masks_of_one_name_are_refused(tmp_path):
    write(tmp_path / "normal/a.png")
    write(tmp_path / "abnormal/b.png")
    write_mask(tmp_path / "masks/b.png")
    write_mask(tmp_path / "masks/b.tif")
    with pytest.raises(DataError, match="second mask of the same name"):
        load_dataset(tmp_path)


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_dataset(tmp_path / "missing")
    with pytest.raises(DataError, match="is empty"):
        load_dataset(tmp_path)
    (tmp_path / "normal").mkdir()
    with pytest.raises(DataError, match="hold no image"):
        load_dataset(tmp_path)
    write(tmp_path / "normal/a.png")
    with pytest.raises(DataError, match="no abnormal images among 1"):
        load_dataset(tmp_path)
    assert len(scan_dataset(tmp_path).samples) == 1
    (tmp_path / "normal/a.png").unlink()
    write(tmp_path / "abnormal/a.png")
    with pytest.raises(DataError, match="no normal images among 1"):
        load_dataset(tmp_path)


TOOLS = (
    ".ipynb_checkpoints/a-checkpoint.png",
    ".thumbnails/a.png",
    ".Trash-1000/files/a.png",
    "@eaDir/a.png/SYNOFILE_THUMB_M.png",
    "__MACOSX/._a.png",
    "$RECYCLE.BIN/$R1.png",
    "#recycle/a.png",
    "._a.png",
    "Thumbs.db",
    "a.png.part",
)


def test_what_tools_leave_behind_is_passed_over_and_counted(tmp_path):
    for kind in ("normal", "abnormal"):
        write(tmp_path / kind / "a.png")
        for name in TOOLS:
            path = tmp_path / kind / name
            write(path.with_suffix(".png")).rename(path)
    write(tmp_path / ".Trash/normal/b.png")
    dataset = load_dataset(tmp_path)
    assert [name for name, *_ in listed(dataset)] == ["abnormal/a.png", "normal/a.png"]
    assert dataset.unused == ()
    # Folders are not looked into: ten entries of either class, and one beside them.
    assert dataset.passed_over == 21


def test_linked_folders_are_followed_once(tmp_path):
    store, root = tmp_path / "store", tmp_path / "set"
    for name in ("n0", "n1", "n2"):
        write(store / f"healthy/{name}.png")
    write(store / "ill/a0.png")
    write(root / "abnormal/a1.png")
    (root / "normal").symlink_to(store / "healthy", target_is_directory=True)
    (root / "abnormal/more").symlink_to(store / "ill", target_is_directory=True)
    (root / "abnormal/once more").symlink_to(store / "ill", target_is_directory=True)
    (root / "abnormal/round").symlink_to(root, target_is_directory=True)
    (store / "ill/round").symlink_to(store / "ill", target_is_directory=True)
    (root / "abnormal/gone.png").symlink_to(store / "gone.png")
    write(store / "single.png")
    (root / "abnormal/single.png").symlink_to(store / "single.png")
    dataset = load_dataset(root)
    assert [name for name, *_ in listed(dataset)] == [
        "abnormal/a1.png",
        "abnormal/more/a0.png",
        "abnormal/single.png",
        "normal/n0.png",
        "normal/n1.png",
        "normal/n2.png",
    ]
    assert unused(dataset) == [
        ("abnormal/gone.png", "dead_link"),
        ("abnormal/more/round", "dead_link"),
        ("abnormal/once more", "dead_link"),
        ("abnormal/round", "dead_link"),
    ]


def test_a_real_folder_comes_before_a_link_to_it(tmp_path):
    write(tmp_path / "normal/b/n.png")
    (tmp_path / "normal/a").symlink_to(tmp_path / "normal/b", target_is_directory=True)
    write(tmp_path / "abnormal/a.png")
    assert [name for name, *_ in listed(load_dataset(tmp_path))] == ["abnormal/a.png", "normal/b/n.png"]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("Ma\u0308rz.png", "M\u00e4rz.png"),  # decomposed, as macOS writes it
        ("M\u00e4rz.png", "Ma\u0308rz_mask.png"),
        ("IMG_1.PNG", "img_1.png"),
        ("img_1.png", "IMG_1_Mask.PNG"),
        ("stra\u00dfe.png", "STRASSE.png"),
        ("P1/a.png", "p1/A.png"),
    ],
)
def test_masks_are_matched_without_case_and_composition(tmp_path, image, mask):
    write(tmp_path / "normal/n.png")
    write(tmp_path / "abnormal" / image)
    write_mask(tmp_path / "masks" / mask)
    (found,) = load_dataset(tmp_path).abnormal
    assert found.mask.path == tmp_path / "masks" / mask


def test_a_mask_of_exactly_the_name_comes_first(tmp_path):
    write(tmp_path / "normal/n.png")
    for name in ("a", "A"):
        write(tmp_path / f"abnormal/{name}.png")
        write_mask(tmp_path / f"masks/{name}.png")
    if len(list((tmp_path / "masks").iterdir())) == 1:
        pytest.skip("a file system without upper and lower case")
    assert all(sample.mask.path.stem == sample.image.path.stem for sample in load_dataset(tmp_path).abnormal)
    (tmp_path / "abnormal/A.png").rename(tmp_path / "abnormal/x.png")
    (tmp_path / "masks/a.png").rename(tmp_path / "masks/X.png")
    write_mask(tmp_path / "masks/X_MASK.png")
    (tmp_path / "abnormal/a.png").unlink()
    assert load_dataset(tmp_path).abnormal[0].mask.path.name == "X.png"


@pytest.mark.parametrize(
    ("mask", "folder"),
    [
        ("abnormal/masks/other.png", "abnormal/masks"),
        ("masks/other.png", "masks"),
        ("masks/abnormal/other.png", "masks/abnormal"),
        ("normal/label/other.png", "normal/label"),
    ],
)
def test_a_masks_folder_in_which_nothing_matches_is_an_error(tmp_path, mask, folder):
    write(tmp_path / "normal/n.png")
    write(tmp_path / "abnormal/a.png")
    write_mask(tmp_path / mask)
    with pytest.raises(DataError, match=f"{folder}: no mask in it has the name of an image"):
        load_dataset(tmp_path)
    assert scan_dataset(tmp_path).unmatched == (tmp_path / folder,)


def test_masks_beside_splits_have_to_say_which_split_or_class(tmp_path):
    for split in ("valid", "test"):
        write(tmp_path / split / "normal/n.png")
        write(tmp_path / split / "abnormal/a.png")
    write_mask(tmp_path / "masks/a.png")
    with pytest.raises(DataError, match="masks: no mask in it"):
        load_dataset(tmp_path)
    (tmp_path / "masks/a.png").unlink()
    write_mask(tmp_path / "masks/Test/abnormal/a.png")
    write_mask(tmp_path / "masks/valid/a.png")
    masks = {sample.split: sample.mask.path for sample in load_dataset(tmp_path).abnormal}
    assert masks == {"valid": tmp_path / "masks/valid/a.png", "test": tmp_path / "masks/Test/abnormal/a.png"}


def test_masks_in_the_folder_of_each_patient(tmp_path):
    write(tmp_path / "normal/P0/img0.png")
    for patient in ("P1", "P2"):
        write(tmp_path / f"abnormal/{patient}/img0.png")
        write_mask(tmp_path / f"abnormal/{patient}/mask/img0.png")
    dataset = load_dataset(tmp_path)
    assert [(name, mask) for name, label, mask, *_ in listed(dataset) if label] == [
        ("abnormal/P1/img0.png", "abnormal/P1/mask/img0.png"),
        ("abnormal/P2/img0.png", "abnormal/P2/mask/img0.png"),
    ]
    assert dataset.unused == ()


def test_what_belongs_to_nothing_has_a_reason(tmp_path):
    for split in ("valid", "test"):
        write(tmp_path / split / "good/img/n.png")
        write(tmp_path / split / "Ungood/img/a.png")
    write(tmp_path / "test/good/beside.png")
    write(tmp_path / "test/Ungoood/img/b.png")
    write(tmp_path / "vaild/good/img/c.png")
    write(tmp_path / "normal/d.png")
    write(tmp_path / "loose.png")
    write(tmp_path / "test/loose.png")
    (tmp_path / "README.md").write_text("")
    (tmp_path / "test/good/img/scan.pdf").write_bytes(b"%PDF-1.7")
    dataset = load_dataset(tmp_path)
    assert len(dataset.samples) == 4
    assert unused(dataset) == [
        ("loose.png", "loose"),
        ("normal", "beside_splits"),
        ("test/Ungoood", "not_a_class"),
        ("test/good/beside.png", "beside_img"),
        ("test/good/img/scan.pdf", "format"),
        ("test/loose.png", "loose"),
        ("vaild", "beside_splits"),
    ]
    assert {dataset.name(one.path): one.hint for one in dataset.unused if one.hint} == {
        "vaild": "did you mean valid?",
        "test/Ungoood": "did you mean ungood?",
    }
    assert said_of_unused(dataset) == (
        "7 files or folders not used: 2 beside the split folders, 1 neither a class nor masks, "
        "2 outside the class folders, 1 beside img/, in which the images of this class are, "
        "1 of a format that is not read (test/Ungoood: did you mean ungood?; vaild: did you mean valid?)"
    )


def test_a_clean_set_has_nothing_to_say_of_what_is_unused(tmp_path):
    write(tmp_path / "normal/n.png")
    write(tmp_path / "abnormal/a.png")
    assert said_of_unused(load_dataset(tmp_path)) == ""
    (tmp_path / ".DS_Store").write_text("")
    assert said_of_unused(load_dataset(tmp_path)) == "1 hidden or of a tool, passed over"


def test_the_content_decides_where_the_suffix_is_no_images(tmp_path):
    write(tmp_path / "normal/n.png")
    for source, target in (("jpg", "a.jfif"), ("jpg", "b.jpe"), ("png", "c"), ("bmp", "d.scan"), ("tif", "e.0001")):
        write(tmp_path / f"abnormal/x.{source}").rename(tmp_path / "abnormal" / target)
    (tmp_path / "abnormal/table.txt").write_text("BMI,age\n24,60\n")
    (tmp_path / "abnormal/empty").write_text("")
    dataset = load_dataset(tmp_path)
    assert [sample.image.path.name for sample in dataset.abnormal] == ["a.jfif", "b.jpe", "c", "d.scan", "e.0001"]
    assert unused(dataset) == [("abnormal/empty", "format"), ("abnormal/table.txt", "format")]


def labels(dataset):
    return {sample.image.path.parent.name: sample.label for sample in dataset.samples}


@pytest.mark.parametrize(
    ("normal", "abnormal"),
    [
        ("benign", "malignant"),
        ("no", "yes"),
        ("0", "1"),
        ("Control", "Disease"),
        ("controls", "patients"),
        ("healthy", "Cancer"),
        ("NEGATIVE", "positive"),
        ("normal", "tumor"),
    ],
)
@pytest.mark.parametrize("split", ["", "train/"])
def test_pairs_of_classes_that_say_what_they_are(tmp_path, normal, abnormal, split):
    write(tmp_path / split / normal / "n.png")
    write(tmp_path / split / abnormal / "a.png")
    write_mask(tmp_path / split / "masks/a.png")
    (tmp_path / split / "notes").mkdir()
    dataset = load_dataset(tmp_path)
    assert labels(dataset) == {normal: 0, abnormal: 1}
    assert dataset.abnormal[0].mask is not None


@pytest.mark.parametrize(
    ("folders", "options"),
    [
        (("covid", "normal", "pneumonia"), "--normal normal --abnormal covid --abnormal pneumonia"),
        (
            ("benign", "malignant", "normal"),
            "--normal normal --abnormal malignant and --normal benign or --abnormal benign, which only you know",
        ),
        (
            ("Benign", "no finding"),
            "--normal 'no finding' and --normal Benign or --abnormal Benign, which only you know",
        ),
        (("benign", "glioma"), "--normal benign --abnormal glioma"),
        (("0", "1", "2"), "--normal 0 --abnormal 1 --abnormal 2"),
        (("AMD", "CNV"), "--normal AMD --abnormal CNV"),
        (("glaucoma", "no glaucoma"), "--normal 'no glaucoma' --abnormal glaucoma"),
    ],
)
def test_other_classes_are_asked_for_with_the_command_to_run(tmp_path, folders, options):
    for folder in folders:
        write(tmp_path / "my set" / folder / "a.png")
    for load in (load_dataset, scan_dataset):
        with pytest.raises(DataError) as caught:
            load(tmp_path / "my set")
        said = str(caught.value)
        assert f"no known layout (found {', '.join(f'{name}/' for name in folders)})" in said
        assert f"madclip data check '{tmp_path}/my set' {options} " in said
        assert f"madclip data manifest '{tmp_path}/my set'" in said
        assert "\n" not in said


def test_classes_that_are_named(tmp_path):
    for folder in ("normal", "benign", "malignant", "other"):
        write(tmp_path / folder / "a.png")
    both = load_dataset(tmp_path, Reading(normal=("NORMAL", "benign"), abnormal=("malignant",)))
    assert labels(both) == {"normal": 0, "benign": 0, "malignant": 1}
    assert unused(both) == [("other", "not_a_class")]
    one = load_dataset(tmp_path, Reading(abnormal=("malignant", "other")))
    assert labels(one) == {"normal": 0, "malignant": 1, "other": 1}
    assert unused(one) == [("benign", "not_a_class")]
    with pytest.raises(DataError, match=r"no folder 'sick' .* there are: benign, malignant, normal, other"):
        load_dataset(tmp_path, Reading(abnormal=("sick",)))
    slashed = load_dataset(tmp_path, Reading(normal=("normal/",), abnormal=("malignant//", "benign\\")))
    assert labels(slashed) == {"normal": 0, "benign": 1, "malignant": 1}
    with pytest.raises(RecipeError, match="'benign' cannot be both"):
        Reading(normal=("benign/",), abnormal=("Benign",))
    with pytest.raises(RecipeError, match="'benign' cannot be both"):
        Reading(normal=("benign",), abnormal=("Benign",))
    assert Reading(normal="benign").normal == ("benign",)


def test_refusals_say_what_was_perhaps_meant(tmp_path):
    write(tmp_path / "archive/inner/yes/a.png")
    write(tmp_path / "archive/inner/no/a.png")
    with pytest.raises(
        DataError, match=r"found archive/\); the data set is in it: madclip data check .*/archive/inner$"
    ):
        load_dataset(tmp_path)
    write(tmp_path / "typo/vaild/good/a.png")
    with pytest.raises(DataError, match=r"vaild/: did you mean valid\?"):
        load_dataset(tmp_path / "typo")
    write(tmp_path / "loose/a.png")
    (tmp_path / "loose/list.csv").write_text("image,label\n")
    with pytest.raises(DataError, match=r"sort images into normal/ .*; or give the list: .* check .*list\.csv"):
        load_dataset(tmp_path / "loose")
    (tmp_path / "hidden/.git").mkdir(parents=True)
    with pytest.raises(DataError, match=r"is empty \(hidden files only\)"):
        load_dataset(tmp_path / "hidden")
