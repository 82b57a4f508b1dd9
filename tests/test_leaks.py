"""Nothing that was used is measured, and nothing is looked at before its time: proven by the files that are opened."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from madclip import MadCLIP, Recipe, load_backbone
from madclip.data.load import load_dataset
from madclip.data.ref import ImageRef
from madclip.data.samples import Dataset, Sample
from madclip.evaluation.protocol import evaluate
from madclip.fitting import Run
from madclip.state import Provenance
from madclip.training.shots import Shot

RECIPE = Recipe(image_size=64, variants=("identity", "flip-horizontal"), epochs=2, batch_size=8)
WATCHED: list[set[str]] = []


def _hook(event, arguments):
    if event == "open" and WATCHED and isinstance(arguments[0], str):
        for opened in WATCHED:
            opened.add(arguments[0])


sys.addaudithook(_hook)


@contextmanager
def opened():
    """Names of the files that are opened meanwhile, whoever opens them."""
    names: set[str] = set()
    WATCHED.append(names)
    try:
        yield names
    finally:
        WATCHED.remove(names)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("stand-in", image_size=64, device="cpu")


def write(root: Path, splits, per_class=12, patients=12, seed=0):
    """Noise, and a bright square where abnormal; every image another one. Patients have images of both classes."""
    generator = np.random.default_rng(seed)
    rows = ["image,label,patient,split"]
    for split in splits:
        for label, name in enumerate(("normal", "abnormal")):
            for i in range(per_class):
                pixels = generator.integers(0, 120, (64, 64), dtype=np.uint8)
                if label:
                    pixels[20:40, 20:40] = 255
                file = root / f"{split or 'all'}-{name}-{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
                rows.append(f"{file.name},{label},{f'{split}P{i % patients}' if patients else ''},{split}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


def files(samples) -> set[str]:
    return {str(sample.image.path) for sample in samples}


def with_another(data: Dataset) -> dict[str, Dataset]:
    """A data set, and one of another modality beside it."""
    return {"noise": data, "other": load_dataset(data.root.parent / "other")}


WAYS = {
    "fit": lambda new, data, digests: new.fit(data, shots=3, folds=0),
    "folds": lambda new, data, digests: new.fit(data, shots=3, folds=3),
    "val": lambda new, data, digests: new.fit(data, shots=4, folds=0, run=Run(select="val")),
    "val and folds": lambda new, data, digests: new.fit(data, shots=4, folds=2, run=Run(select="val")),
    "calibrate": lambda new, data, digests: new.fit(data, shots=3, folds=0).calibrate(
        Dataset(data.root, "manifest", (data.shot_pool[0], data.shot_pool[-1]))
    ),
    "refit without some": lambda new, data, digests: new.fit(data, shots=4, folds=2).refit(
        [sample for sample in data.shot_pool if digests[sample.image] in new.provenance.shots][1:-1]
    ),
    "refit with more": lambda new, data, digests: new.fit(data, shots=2, folds=0).refit(data, shots=4),
    "normal images alone": lambda new, data, digests: new.fit(data, shots=(6, 0)),
    "normal images, then an abnormal one": lambda new, data, digests: new.fit(data, shots=(5, 0)).refit(
        data, shots=(6, 1)
    ),
    "texts alone": lambda new, data, digests: new.fit(data, shots=0),
    "texts, calibrated": lambda new, data, digests: new.fit(shots=0).calibrate(
        Dataset(data.root, "manifest", (data.shot_pool[0], data.shot_pool[-1]))
    ),
    "texts, then shots": lambda new, data, digests: new.fit(shots=0).refit(data, shots=3),
    "normal images, calibrated": lambda new, data, digests: new.fit(data, shots=(3, 0)).calibrate(
        Dataset(data.root, "manifest", (*data.shot_pool[:4], *data.shot_pool[-4:]))
    ),
    "joint, calibrated": lambda new, data, digests: new.fit(with_another(data), shots=3, folds=0).calibrate(
        Dataset(data.root, "manifest", (data.shot_pool[0], data.shot_pool[-1])), modality="noise"
    ),
    "joint": lambda new, data, digests: new.fit(with_another(data), shots=3, folds=2),
    "joint, then more": lambda new, data, digests: new.fit(with_another(data), shots=3, folds=0).refit(
        with_another(data)
    ),
    "val then refit": lambda new, data, digests: new.fit(data, shots=4, folds=0, run=Run(select="val")).refit(
        data, shots=3
    ),
}


@pytest.mark.parametrize("patients", [0, 12], ids=["no patients", "patients"])
@pytest.mark.parametrize("splits", [("",), ("valid", "test")], ids=["plain", "splits"])
@pytest.mark.parametrize("way", WAYS)
def test_what_was_used_is_not_measured(way, splits, patients, backbone, tmp_path):
    data = load_dataset(write(tmp_path / "set", splits, patients=patients))
    detector = MadCLIP(RECIPE, backbone=backbone, objective="noise")
    digests = {sample.image: sample.image.digest() for sample in data.samples}
    other = []
    if "joint" in way:
        other = load_dataset(write(tmp_path / "other", splits, patients=patients, seed=1)).samples
    with opened() as used:
        WAYS[way](detector, data, digests)
    everything = files(data.samples)
    seen = used & everything
    assert seen <= files(data.shot_pool), "only the shot pool may be opened by a fit"
    assert used & files(other) <= files(sample for sample in other if sample.split != "test")
    with opened() as measured:
        result = evaluate(detector, data)
    rows = {str(data.root / row.name) for row in result.rows}
    assert rows <= measured
    assert not rows & seen
    if way == "texts alone":
        assert not seen, "no image is looked at"
    if patients:
        group = {str(sample.image.path): sample.patient for sample in data.samples}
        assert not {group[name] for name in rows} & {group[name] for name in seen}
    elif splits == ("",):
        assert rows | seen == everything, "what was not used is measured"


def test_an_epoch_chosen_on_test_images_opens_them_and_says_so(backbone, tmp_path):
    data = load_dataset(write(tmp_path / "set", ("valid", "test"), patients=0))
    detector = MadCLIP(RECIPE, backbone=backbone, objective="noise")
    with opened() as used:
        detector.fit(data, shots=3, run=Run(select="test-best"))
    assert files(data.test_pool) <= used
    assert any("optimistic" in warning for warning in evaluate(detector, data).warnings)


def test_a_volume_is_known_again_whatever_its_patient_is_called():
    shot = Sample(ImageRef(Path("/nowhere/a.nii.gz"), 3), 0, patient="P1", volume="v1")
    known = Provenance.of([Shot(None, 0, None, "0" * 64, shot.groups)], 0)
    for patient, volume, seen in (("P1", "v2", True), (None, "v1", True), ("v1", "v1", True), ("P2", "v2", False)):
        assert known.saw_group(Sample(ImageRef(Path("/b.nii.gz"), 1), 1, patient=patient, volume=volume)) is seen


def test_a_volume_that_gave_a_shot_is_not_measured():
    volume = Path("/nowhere/scan.nii.gz")
    shot = Sample(ImageRef(volume, 3), 0)
    known = Provenance.of([Shot(None, 0, None, "0" * 64, shot.groups)], 0)
    assert known.saw(Sample(ImageRef(volume, 4), 1))
    assert not known.saw_group(Sample(ImageRef(volume.with_name("other.nii.gz"), 3), 1))


def test_no_name_of_a_patient_or_a_file_is_kept(backbone, tmp_path):
    root = write(tmp_path / "set", ("",))
    manifest = root / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("P", "ZZCANARY"))
    detector = MadCLIP(RECIPE, backbone=backbone, objective="noise").fit(root, shots=3, folds=2)
    assert detector.provenance.groups
    assert detector.provenance.pool
    detector.save(tmp_path / "detector")
    kept = (tmp_path / "detector" / "detector.json").read_text()
    assert "ZZCANARY" not in kept
    assert "normal-0" not in kept


def test_a_refit_learns_from_the_shots_and_what_was_added(backbone, tmp_path):
    root = write(tmp_path / "set", ("",), per_class=6, patients=0)
    detector = MadCLIP(RECIPE, backbone=backbone, objective="noise").fit(root, shots=2, folds=0)
    shots = set(detector.provenance.shots)
    detector.refit(root)
    assert set(detector.provenance.shots) == shots
    new = root / "added.png"
    Image.fromarray(np.random.default_rng(9).integers(0, 99, (64, 64), dtype=np.uint8)).save(new)
    with (root / "manifest.csv").open("a") as file:
        file.write("added.png,0,,\n")
    detector.refit(root)
    assert (
        set(detector.provenance.shots) - shots == {load_dataset(root).samples[-1].image.digest()}
        or len(detector.provenance.shots) == len(shots) + 1
    )
    assert (detector.provenance.normal, detector.provenance.abnormal) == (3, 2)
    result = evaluate(detector, root)
    assert (result.n_normal, result.n_abnormal) == (4, 4)


def test_older_detectors_say_what_they_saw():
    old = {
        "madclip": "0.1.0",
        "torch": "2.13.0",
        "seed": 0,
        "normal": 1,
        "abnormal": 1,
        "masks": 0,
        "shots": ["a", "b"],
    }
    known = Provenance.from_dict(json.loads(json.dumps(old | {"calibrated_on": ["c"], "select": "last"})))
    assert known.seen == {"a", "b", "c"}
    assert Provenance.from_dict(known.to_dict()) == known
    assert Provenance.from_dict({"source": "released checkpoint", "sha256": "0", "masks": True}).masks
