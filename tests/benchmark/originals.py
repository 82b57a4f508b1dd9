"""Miniature downloads of every registered set, in the originals' own structure."""

import csv

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def picture(path, size=(16, 16), shape=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(0, 255, shape or size, dtype=np.uint8)
    Image.fromarray(values).save(path)


def table(path, head, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def volume(path, values, dtype):
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values.astype(dtype), np.eye(4)), path)


def brain(root):
    """BraTS 2021: patients that BMAD names for each split, and three that it does not name."""
    from madclip.benchmark.prepare.layout import published_splits

    named = published_splits()["brain"]
    patients = [
        *named["train"][:2],
        *named["valid_normal"][:6],
        *named["test_normal"][:3],
        *named["valid_abnormal"][:2],
    ]
    for number in [*patients, "99901", "99902", "99903"]:
        ill = number in named["valid_abnormal"] or number.startswith("999")
        flair = RNG.normal(400, 90, (20, 18, 100))
        labels = np.zeros(flair.shape)
        if ill:
            labels[5:9, 6:11, 58:90] = RNG.choice([1, 2, 4])
            flair[labels > 0] += 500
        folder = root / f"BraTS2021_{number}"
        for kind in ("flair", "t1"):
            volume(folder / f"{folder.name}_{kind}.nii.gz", flair, np.int16)
        volume(folder / f"{folder.name}_seg.nii.gz", labels, np.uint8)


def liver(root):
    """LiTS in two batches, BTCV in RawData/Training."""
    for number in range(4):
        labels = np.zeros((24, 20, 400))
        labels[4:16, 5:15, 10:390] = 1
        labels[6:9, 8:11, 100:300] = 2
        folder = root / f"Training Batch {1 + number % 2}"
        volume(folder / f"volume-{number}.nii", RNG.normal(60, 40, labels.shape), np.int16)
        volume(folder / f"segmentation-{number}.nii", labels, np.uint8)
    labels = np.zeros((24, 20, 8))
    labels[4:16, 5:15, 2:6] = 6
    labels[0:3, 0:3] = 1
    volume(root / "RawData/Training/img/img0001.nii.gz", RNG.normal(60, 40, labels.shape), np.int16)
    volume(root / "RawData/Training/label/label0001.nii.gz", labels, np.uint8)


def resc(root):
    """RESC: cases of B-scans, labels of 0, 128, 191, 255."""
    for part, cases in (("training", 1), ("validation", 4)):
        for case in range(cases):
            stem = f"P{case + 100 * (part == 'training'):04d}_MacularCube512x128_4-12-2013_10-11-45_OD_sn{case}_cube_z"
            for scan in range(1, 21):
                base = root / f"Edema_{part}set"
                picture(base / "original_images" / f"{stem}.img" / f"{scan}.bmp", (16, 24))
                label = np.zeros((16, 24), np.uint8)
                if scan > 10:
                    label[4:8, 5:9] = (128, 191, 255)[scan % 3]
                path = base / "label_images" / f"{stem}_labelMark" / f"{scan}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(label).save(path)


def oct17(root):
    """OCT2017: a test patient with two images, one who is in both classes, and one whose images are in train/ too."""
    for index in range(20):
        picture(root / f"test/NORMAL/NORMAL-{1000 + index}-1.jpeg")
        picture(root / f"train/NORMAL/NORMAL-{9000 + index}-1.jpeg")
        for first, kind in ((2000, "CNV"), (3000, "DME"), (4000, "DRUSEN")):
            picture(root / f"test/{kind}/{kind}-{first + index}-1.jpeg")


def chest(root):
    """RSNA: DICOM files compressed as JPEG, some patients in several rows, images without a label."""
    import io

    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, generate_uid

    rows = []
    for index in range(90):
        patient = f"0004cfab-14fd-4e49-80ba-63a80b6b{index:04x}"
        kind = ("Normal", "Lung Opacity", "Normal", "No Lung Opacity / Not Normal", "Normal")[index % 5]
        part = "test" if index >= 85 else "train"
        if part == "train":
            rows += [(patient, kind)] * (2 if kind == "Lung Opacity" else 1)
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", generate_uid()
        dataset.PatientID, dataset.Modality, dataset.PhotometricInterpretation = patient, "CR", "MONOCHROME2"
        dataset.Rows = dataset.Columns = 16
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit, dataset.SamplesPerPixel, dataset.PixelRepresentation = 7, 1, 0
        jpeg = io.BytesIO()
        Image.fromarray(RNG.integers(0, 255, (16, 16), dtype=np.uint8)).save(jpeg, "JPEG")
        dataset.PixelData = encapsulate([jpeg.getvalue()])
        path = root / f"stage_2_{part}_images" / f"{patient}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
    table(root / "stage_2_detailed_class_info.csv", ("patientId", "class"), rows)


def histology(root):
    """Camelyon16: tiled slides, large enough for the first places that BMAD names in each; tiles mostly empty."""
    import tifffile

    from madclip.benchmark.prepare import histology as module
    from madclip.benchmark.prepare.layout import published_splits

    known = published_splits()["histology"]
    for name in ("train_good", "valid_good", "test_good"):
        slide = next(iter(known[name]))
        path = root / ("training/normal" if name.startswith("train") else "testing/images") / f"{slide}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(
            path, RNG.integers(0, 255, (1024, 1024, 3), dtype=np.uint8), tile=(256, 256), photometric="rgb"
        )
    return module


def nih(root):
    """ChestX-ray14: two folders of images, the table, both published lists; patients have several images."""
    rows, lists = [], {"train_val": [], "test": []}
    for index in range(90):
        patient, follow_up = divmod(index, 2)
        name = f"{patient + 1:08d}_{follow_up:03d}.png"
        picture(root / f"images_{1 + patient // 23:03d}" / "images" / name)
        finding = ("No Finding", "Cardiomegaly|Emphysema")[patient % 2]
        rows.append((name, finding, follow_up, patient + 1, "58", "M", "PA", "2682", "2749", "0.143", "0.143", ""))
        lists["test" if patient < 20 else "train_val"].append(name)
    head = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    )
    table(root / "Data_Entry_2017.csv", head.split(","), rows)
    table(root / "BBox_List_2017.csv", ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"), [])
    for name, images in lists.items():
        (root / f"{name}_list.txt").write_text("\n".join(images))


def chexpert(root):
    """CheXpert: both tables; lateral views, uncertain findings, devices."""
    findings = (
        "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
        "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
    )
    head = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *findings.split(",")]
    for part, count in (("train", 40), ("valid", 6)):
        rows = []
        for index in range(count):
            for number, view in ((1, "frontal"), (2, "lateral")):
                file = f"{part}/patient{part == 'valid':d}{index:04d}/study1/view{number}_{view}.jpg"
                picture(root / file)
                values = [""] * 12
                if index % 2:
                    values[3] = "1.0"
                elif index == 2:
                    values[3] = "-1.0"
                normal = "" if index % 2 else "1.0"
                rows.append((f"CheXpert-v1.0-small/{file}", "F", "60", view.capitalize(), "AP", normal, *values, "1.0"))
        table(root / f"{part}.csv", head, rows)


def adni(root):
    """ADNI: the archive's list and a folder per subject; sagittal scans, brighter towards the head."""
    import nibabel

    rows = []
    for index in range(27):
        group, number, subject = ("CN", "AD", "MCI")[index % 3], f"I{45000 + index}", f"002_S_{index:04d}"
        rows.append(
            (number, subject, group, "M", "74", "sc", "MRI", "MP-RAGE", "Original", "9/28/2005", "NiFTI", "11/24/2026")
        )
        folder = root / "ADNI" / subject / "MP-RAGE" / "2005-09-28_10_00_00.0" / number
        folder.mkdir(parents=True)
        # Stored from front to back, from head to foot, from left to right.
        values = RNG.normal(300, 20, (20, 40, 16)) + 100 * np.arange(40)[::-1, None]
        affine = np.array([[0, 0, 1.2, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
        path = folder / f"ADNI_{subject}_MR_MP-RAGE_br_raw_20050928100000_1_S9000_{number}.nii"
        nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), affine), path)
    head = "Image Data ID,Subject,Group,Sex,Age,Visit,Modality,Description,Type,Acq Date,Format,Downloaded"
    table(root / "MPRAGE_11_24_2026.csv", head.split(","), rows)


def octdl(root):
    """OCTDL: its table, and folders of its diseases."""
    rows = []
    for disease in ("AMD", "DME", "ERM", "NO", "RAO", "RVO", "VID"):
        for index in range(24 if disease == "NO" else 6):
            name = f"{disease.lower()}_{100 + index}_1"
            picture(root / "OCTDL" / disease / f"{name}.jpg")
            rows.append((name, disease, "", "", f"{disease}{index // 2}", "OD", "f", "2020", "8", "8"))
    head = "file_name disease subcategory condition patient_id eye sex year image_width image_height"
    table(root / "OCTDL_labels.csv", head.split(), rows)


MINIATURES = {
    "BrainMRI": brain,
    "LiverCT": liver,
    "RESC": resc,
    "OCT17": oct17,
    "Chest": chest,
    "HIS": histology,
    "NIHChest": nih,
    "CheXpert": chexpert,
    "ADNI": adni,
    "OCTDL": octdl,
}
