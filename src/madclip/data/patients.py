"""Whose image is whose: patients from the folders and names of image files.

**The rule of `auto`.** First the folders below the class folder are tried, the first level that will do; then names of
the form `<patient>_<slice>` (a number after the last underscore). Either is taken for patients only where all of this
holds, because patients that are none confound shots with the class and leave no folds to calibrate on:

1. Every image has such a folder or name, and a number stands in it that is not that of a scanner or site, a sequence, a
   series or slice, a class or a part of the set (`scanner1`, `T1`, `SE3`, `slice 4`, `disease5`, `grade2`, `lot3`), nor
   a year or date where all names have one (`2023`, `CR_2021`, `15012023`, `3Mar21`). None of these are a part of the
   patient: `T1_P03` and `T2_P03` are one.
2. There are at least 6 patients, and fewer than images.
3. No patient has more than half of the images of a class, unless the class has fewer than 4 images.

Otherwise patients are unknown, and the data set says why.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from madclip.data.classes import ABNORMAL_NAMES, NORMAL_NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_PATIENTS = 6
"""Fewer groups are as likely scanners, years or classes."""
_SLICE = re.compile(r"^(?P<patient>.+)_\d+$")
_TOKENS = re.compile(r"[/_\-. ]+")
_PLACES = (
    "scanners?|devices?|machines?|cameras?|vendors?|sites?|cent(?:er|re)s?|hospitals?|clinics?|rooms?|domains?"
    "|siemens|ge|philips|canon|toshiba|hitachi|zeiss|topcon|heidelberg|nidek|cirrus|spectralis"
)
_PLACE = re.compile(rf"^(?:{_PLACES})\d*$")
"""Where an image was taken: no patient, though patients of two places are two."""
_MODALITIES = "ct|cta|mr|mri|mra|cr|dx|dr|us|mg|xr|xray|cxr|oct|octa|pet|nm"
_COUNTED = (
    "batch(?:es)?|lots?|folds?|splits?|sets?|parts?|chunks?|groups?|cohorts?|waves?|runs?|rounds?|sessions?|visits?"
    "|class(?:es)?|cls|categor(?:y|ies)|cat|labels?|grades?|stages?|scores?|birads|kl|types?|kinds?"
    "|years?|months?|weeks?|days?|time(?:point)?s?|seq(?:uences?)?|series|ser|se|slices?|sl|sections?|frames?|phases?"
    "|images?|imgs?|im|pictures?|pics?|pages?|planes?|views?|levels?|tiles?|patch(?:es)?|regions?|rois?"
)
"""What is numbered within a patient, or counts patients' images by something else than the patient."""
_PEOPLE = frozenset({"case", "cases", "patient", "patients"})
_CLASSES = "|".join(
    sorted(name for name in (NORMAL_NAMES | ABNORMAL_NAMES) - _PEOPLE if name.isalpha() and len(name) > 2)
)
_KIND = re.compile(
    rf"^(?:{_MODALITIES}|flair|dwi|adc|swi|stir|t[12](?:w|c|ce|gd|star)?|normals|abnormals"
    rf"|(?:{_COUNTED}|{_CLASSES}|lesions?|tumou?rs|diseases|diagnos[ei]s|findings?|train|valid|test)\d*)$"
)
"""What an image is one of: a patient has several, so that it is no part of a patient's name."""
_SPACED = re.compile(rf"(?<![a-z])({_COUNTED}|{_PLACES})[_\-. ]+(?=\d+(?:[/_\-. ]|$))", re.IGNORECASE)
"""A word whose number stands apart from it, as in `slice 4`."""
_DD, _MM, _YYYY = "(?:0[1-9]|[12][0-9]|3[01])", "(?:0[1-9]|1[0-2])", "(?:19|20)[0-9][0-9]"
_MONTHS = "(?:jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)"
_YEAR = re.compile(
    rf"^(?:{_MODALITIES}|y)?{_YYYY}(?:{_MM}(?:{_DD}(?:t?[0-2]\d[0-5]\d(?:[0-5]\d)?)?)?)?$"
    rf"|^(?:{_DD}{_MM}|{_MM}{_DD})(?:{_YYYY}|\d\d)$|^\d\d{_MM}{_DD}$"
    rf"|^\d{{0,2}}{_MONTHS}(?:{_YYYY}|\d\d)$|^{_YYYY}{_MONTHS}\d{{0,2}}$"
)
_DAY_OR_MONTH = re.compile(rf"^(?:[1-9]|{_DD}|{_MONTHS})$", re.IGNORECASE)


@dataclass(frozen=True)
class Patients:
    """The patient of each image in a list.

    Attributes:
        of: The patient of each image, or None where that is unknown.
        source: `names`, `folders` or `none`.
        note: By which rule they are known, or why they are not.
        guessed: Whether they were taken by `auto`.
    """

    of: tuple[str | None, ...]
    source: str
    note: str = ""
    guessed: bool = False


def find_patients(keys: Sequence[str], labels: Sequence[int], rule: str) -> Patients:
    """Finds patients by a rule as `Reading.patients` has it.

    Args:
        keys: For each image its path below the class folder without suffix.
        labels: For each image 0 normal or 1 abnormal.
        rule: `auto`, `none`, `folder`, `header` (which names tell nothing of) or a regular expression with a group.
    """
    unknown = (None,) * len(keys)
    if rule == "header":
        return Patients(unknown, "none", "no header of the images names one")
    if rule == "none":
        return Patients(unknown, "none", "as asked for")
    if rule == "auto":
        return _guess(keys, labels)
    if rule == "folder":
        found = tuple(key.split("/")[0] if "/" in key else None for key in keys)
        source, how = "folders", "below the class folders"
    else:
        pattern = re.compile(rule)
        group = "patient" if "patient" in pattern.groupindex else 1
        found = tuple(match[group] or None if (match := pattern.search(key)) else None for key in keys)
        source, how = "names", f"by the rule {rule}"
    if not any(found):
        return Patients(unknown, "none", f"the rule {rule} finds none, as in {keys[0]}" if keys else "")
    return Patients(found, source, how)


def _guess(keys: Sequence[str], labels: Sequence[int]) -> Patients:
    reasons: list[str] = []
    depth = min((key.count("/") for key in keys), default=0)
    levels = [["/".join(key.split("/")[: level + 1]) for key in keys] for level in range(depth)]
    for groups in levels:
        found = _bare(groups)
        reason = _doubt(found, labels)
        if not reason:
            return Patients(tuple(found), "folders", "below the class folders", guessed=True)
        reasons.append(f"the folders below the classes {reason}")
    matches = [_SLICE.match(key) for key in keys]
    if keys and all(matches):
        found = _bare([match["patient"] for match in matches if match])
        reason = _doubt(found, labels)
        if not reason:
            return Patients(tuple(found), "names", "<patient>_<slice>", guessed=True)
        reasons.append(f"the names {reason}")
    return Patients((None,) * len(keys), "none", "; ".join(dict.fromkeys(reasons)))


def _bare(groups: Sequence[str]) -> list[str | None]:
    """The patient that each group may name: what is left without years, places and kinds, if it holds a number."""
    tokens = {group: [token for token in _TOKENS.split(_SPACED.sub(r"\1", group)) if token] for group in groups}
    # Patients that are numbered through pass 1900 to 2099 as well, so that years are years only where all have one.
    dated = all(any(_YEAR.match(token.lower()) for token in of) for of in tokens.values())
    named = {group: _patient_in(of, dated=dated) or None for group, of in tokens.items()}
    unchanged = all(name is None or name == "_".join(tokens[group]) for group, name in named.items())
    return [group if unchanged and named[group] else named[group] for group in groups]


def _patient_in(tokens: list[str], *, dated: bool) -> str:
    left = [token for token in tokens if not _KIND.match(token.lower())]
    if dated:
        left = [token for token in left if not _YEAR.match(token.lower()) and not _DAY_OR_MONTH.match(token)]
    numbered = any(any(map(str.isdigit, token)) for token in left if not _PLACE.match(token.lower()))
    return "_".join(left) if numbered else ""


def _doubt(found: Sequence[str | None], labels: Sequence[int]) -> str:
    """Why groups may not be patients, or an empty string."""
    groups = Counter(found)
    if None in groups:
        return "do not all hold a patient's number"
    if len(groups) < MIN_PATIENTS:
        return f"form {len(groups)} groups only, which may be scanners or years"
    if len(groups) == len(found):
        return "are all different"
    for label, kind in enumerate(("normal", "abnormal")):
        within = Counter(group for group, of in zip(found, labels, strict=True) if of == label)
        if within.total() >= 4 and max(within.values()) > within.total() / 2:
            return f"have most {kind} images in one group"
    return ""
