"""Sentences about phantoms: many wordings of what was drawn, so that a text tower meets every prompt used later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

OBJECTIVES = {
    "brain": "Brain",
    "liver": "Liver",
    "oct": "retinal OCT",
    "chest": "Chest X-ray film",
    "histology": "histopathological image",
    "ultrasound": "breast ultrasound",
    "fundus": "retinal fundus photograph",
    "generic": "texture",
}
"""The objective of each modality in learned prompts (method.md, section 3)."""

NAMES: dict[str, tuple[str, ...]] = {
    "brain": ("brain MRI", "brain MR", "head MRI", "MR image of the brain", "magnetic resonance image of the head"),
    "liver": (
        "liver CT",
        "CT of the liver",
        "abdominal CT",
        "CT slice of the liver",
        "computed tomography of the liver",
    ),
    "oct": ("retina OCT", "OCT scan of the retina", "optical coherence tomography", "OCT B-scan", "OCT of the macula"),
    "chest": ("chest X-ray", "chest radiograph", "X-ray of the lungs", "chest film", "thorax X-ray"),
    "histology": ("histology image", "tissue slide", "H&E stained tissue", "pathology patch", "microscopy of tissue"),
    "ultrasound": ("breast sonogram", "ultrasound of the breast", "ultrasound image", "breast US", "sonography"),
    "fundus": ("fundus photograph", "retinal fundus image", "colour fundus photo", "photo of the retina", "eye fundus"),
    "generic": ("texture", "pattern", "surface", "material", "image of a surface"),
}
"""What each modality is called besides its objective."""

FINDINGS: dict[str, tuple[str, ...]] = {
    "lesion": ("lesion", "abnormality", "abnormal area"),
    "tumour": ("tumour", "tumor", "glioma", "mass", "neoplasm"),
    "infiltrating tumour": ("infiltrating tumour", "diffuse glioma", "ill-defined lesion"),
    "ring-enhancing lesion": ("ring-enhancing lesion", "ring lesion", "lesion with a bright rim"),
    "oedema": ("oedema", "edema", "swelling"),
    "cyst": ("cyst", "cystic lesion", "fluid-filled cavity"),
    "metastasis": ("metastasis", "secondary tumour", "metastases"),
    "white matter lesions": ("white matter lesions", "several small lesions", "demyelination"),
    "infarct": ("infarct", "stroke", "ischaemic area"),
    "haemorrhage": ("haemorrhage", "hemorrhage", "bleeding"),
    "consolidation": ("consolidation", "pneumonia", "airspace opacity", "opacity"),
    "pneumonia": ("pneumonia", "patchy opacities", "infection of the lung", "infiltrate"),
    "interstitial haze": ("interstitial haze", "diffuse haze", "interstitial pneumonia", "ground glass"),
    "nodule": ("nodule", "coin lesion", "pulmonary nodule", "mass"),
    "effusion": ("pleural effusion", "effusion", "fluid in the pleural space"),
    "pneumothorax": ("pneumothorax", "collapsed lung", "air in the pleural space"),
    "intraretinal fluid": ("intraretinal fluid", "macular oedema", "cystoid spaces", "macular edema"),
    "subretinal fluid": ("subretinal fluid", "serous detachment", "fluid under the retina"),
    "drusen": ("drusen", "bumps of the pigment epithelium", "early macular degeneration"),
    "detachment": ("pigment epithelial detachment", "detachment", "elevated pigment epithelium"),
    "neovascularisation": ("choroidal neovascularisation", "CNV", "neovascular membrane"),
    "hypodense lesion": ("hypodense lesion", "liver tumour", "low-density lesion"),
    "hyperdense lesion": ("hyperdense lesion", "enhancing lesion", "high-density lesion"),
    "exudates": ("exudates", "hard exudates", "bright yellow spots"),
    "haemorrhages": ("haemorrhages", "hemorrhages", "dark red blots"),
    "microaneurysms": ("microaneurysms", "tiny red dots"),
    "retinopathy": ("retinopathy", "diabetic retinopathy", "exudates and haemorrhages"),
    "carcinoma": ("carcinoma", "tumour", "cancer", "malignant cells"),
    "mass": ("mass", "lesion", "tumour", "lump"),
    "defect": ("defect", "flaw", "damage", "fault"),
}
"""Words for each finding; a finding that is not listed is called by its own name."""

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
    "healthy {}",
    "normal {}",
    "{} without lesion",
    "{} with no abnormality",
    "unremarkable {}",
    "{} of a healthy person",
    "no finding in the {}",
)
ABNORMAL_STATES = (
    "damaged {}",
    "broken {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
    "disease {}",
    "abnormal {}",
    "{} with lesion",
    "diseased {}",
    "pathological {}",
    "{} with an abnormality",
    "{} of a patient",
    "lesion in the {}",
)
"""The states of method.md, section 3, first; then what people write besides."""

SYNONYMS = {
    "bright": ("bright", "hyperintense", "white", "light"),
    "dark": ("dark", "hypointense", "black", "low-signal"),
    "mixed": ("heterogeneous", "mixed", "uneven"),
    "subtle": ("subtle", "faint", "barely visible"),
    "small": ("small", "tiny", "little"),
    "medium": ("medium", "medium-sized", "moderate"),
    "large": ("large", "big", "extensive"),
}

Pick = Callable[[Sequence[str]], str]


def captions(attributes: Sequence[Mapping[str, Any]], generator: torch.Generator, k: int = 1) -> list[list[str]]:
    """Write k captions of each image.

    Args:
        attributes: One mapping for each image. Required: `modality` (a key of OBJECTIVES) and `label` (0 or 1).
            Optional, a missing key or None is not spoken of: `finding` (a key of FINDINGS or any words), `brightness`
            (bright, dark, mixed, subtle or any word), `size` (small, medium, large), `side` (left, right, middle,
            both), `height` (upper, middle, lower), `view` (words before the modality: axial flair), `count`
            (single, multiple), `note` (words of something seen that is no finding: with a chest tube).
        generator: On the CPU; draws the wordings.
        k: Captions of each image.
    """
    draws = torch.rand(len(attributes), k, 16, generator=generator).tolist()
    return [[_sentence(of, _picker(numbers)) for numbers in rows] for of, rows in zip(attributes, draws, strict=True)]


def _picker(numbers: list[float]) -> Pick:
    stream = iter(numbers)

    def pick(options: Sequence[str]) -> str:
        return options[int(next(stream) * len(options))]

    return pick


def _sentence(of: Mapping[str, Any], pick: Pick) -> str:
    modality = of["modality"]
    objective = OBJECTIVES.get(modality, modality)
    name = pick((objective, objective, *NAMES.get(modality, (modality,)), *NAMES.get(modality, ())))
    view = of.get("view")
    if view and pick(("view", "none")) == "view":
        name = f"{view} {name}"
    note = of.get("note")
    tail = f" {note}" if note and pick(("note", "none", "none")) == "note" else ""
    text = _abnormal(of, objective, name, pick) if of["label"] else _normal(modality, objective, name, pick)
    text = text + tail
    return pick((text, text, text + ".", text.lower()))


def _normal(modality: str, objective: str, name: str, pick: Pick) -> str:
    form = pick(("state", "state", "objective", "absent", "medical"))
    if form == "objective":
        return pick(NORMAL_STATES).format(objective)
    if form == "absent":
        absent = pick(FINDINGS[pick(FINDINGS_OF.get(modality, ("lesion",)))])
        return pick(("{1}, no {0}", "{1} without {0}", "no {0} in the {1}", "{1} free of {0}")).format(absent, name)
    if form == "medical":
        return pick(NORMAL_STATES).format(pick(("medical image", "tissue", f"medical image, {name}")))
    return pick(NORMAL_STATES).format(name)


def _abnormal(of: Mapping[str, Any], objective: str, name: str, pick: Pick) -> str:
    finding = pick(FINDINGS.get(of.get("finding") or "lesion", (of.get("finding") or "lesion",)))
    form = pick(("full", "full", "place", "finding", "state", "objective", "medical"))
    if form == "state":
        return pick(ABNORMAL_STATES).format(name)
    if form == "objective":
        return pick(ABNORMAL_STATES).format(objective)
    if form == "medical":
        return pick(("medical image with {}", "{} in a medical image", "image showing {}")).format(finding)
    if form == "finding":
        return pick(("{1} with {0}", "{0} on {1}", "{1}: {0}", "{1} showing {0}", "{0}, {1}")).format(finding, name)
    words = [
        pick(SYNONYMS.get(str(of[key]), (str(of[key]),)))
        for key in ("count", "size", "brightness")
        if of.get(key) and pick(("say", "say", "omit")) == "say"
    ]
    where = _where(of, pick)
    what = " ".join([*words, finding])
    if form == "place":
        return f"{what} {where}".strip()
    return pick(("{1}, {0} {2}", "{1} with {0} {2}", "{0} {2}, {1}", "{1} showing {0} {2}")).format(what, name, where)


def _where(of: Mapping[str, Any], pick: Pick) -> str:
    side, height = of.get("side"), of.get("height")
    if side == "both":
        return pick(("on both sides", "bilateral", "left and right"))
    part = " ".join(word for word in (height if height != "middle" else "", side if side != "middle" else "") if word)
    if not part:
        return pick(("in the middle", "in the centre", "central")) if side or height else ""
    return pick(("in the {} part", "at the {}", "{}", "on the {} side")).format(part)


FINDINGS_OF: dict[str, tuple[str, ...]] = {
    "brain": ("tumour", "ring-enhancing lesion", "oedema", "infiltrating tumour", "white matter lesions", "lesion"),
    "chest": ("consolidation", "nodule", "effusion", "pneumothorax", "interstitial haze", "pneumonia"),
    "oct": ("intraretinal fluid", "subretinal fluid", "drusen", "detachment", "neovascularisation"),
    "liver": ("hypodense lesion", "hyperdense lesion", "metastasis", "cyst", "lesion"),
    "histology": ("carcinoma", "metastasis", "tumour"),
    "ultrasound": ("mass", "cyst", "tumour"),
    "fundus": ("exudates", "haemorrhages", "microaneurysms", "retinopathy"),
    "generic": ("defect",),
}
"""What each modality may show; normal captions say that it is absent."""
