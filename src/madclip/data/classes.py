"""Which folder of a data set, or which label of a manifest, is normal and which is abnormal."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from madclip.data.walk import folded
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from madclip.data.samples import Reading, Split

SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
MASK_FOLDERS = frozenset({"anomaly_mask", "anomaly_masks", "label", "labels", "mask", "masks", "ground_truth"})
NORMAL_FOLDERS = frozenset({"good", "normal"})
ABNORMAL_FOLDERS = frozenset({"ungood", "abnormal", "anomalous", "bad"})
NORMAL_NAMES = NORMAL_FOLDERS | {"healthy", "negative", "neg", "benign", "no", "0", "false", "control", "controls"}
ABNORMAL_NAMES = ABNORMAL_FOLDERS | {
    *("anomaly", "defect", "positive", "pos", "malignant", "yes", "1", "true", "case", "cases", "patient", "patients"),
    *("disease", "diseased", "sick", "unhealthy", "pathological", "pathology", "cancer", "tumor", "tumour"),
}
"""As folders, these names are understood where they are the only two; as labels of a manifest, always, but for
`UNCLEAR` ones."""
UNCLEAR = frozenset({"benign"})
"""Normal beside `malignant`; beside a class that is healthy, such images show a finding, and only the user knows what
they are to be."""


def label_of(text: str, reading: Reading) -> int | None:
    """The label that a manifest's text stands for, 0 or 1, or None where it is unknown."""
    named = named_roles(reading)
    name = folded(text.strip())
    if name in named:
        return named[name]
    if re.fullmatch(r"[01]\.0*", name):
        name = name[0]
    if name in NORMAL_NAMES:
        return 0
    return 1 if name in ABNORMAL_NAMES else None


def unclear_names(names: Iterable[str], reading: Reading) -> set[str]:
    """Those of some class names that may be normal or abnormal, because another one is normal for certain."""
    names = list(names)
    unclear = {name for name in names if folded(name) in UNCLEAR and folded(name) not in named_roles(reading)}
    return unclear if any(sounds_normal(name) for name in names if folded(name) not in UNCLEAR) else set()


def sounds_normal(name: str) -> bool:
    """Whether the name of a class says that nothing is wrong in its images, as `normal` and `no tumour` do."""
    return folded(name) in NORMAL_NAMES or bool(re.match(r"(?:no|non|not|without)(?![a-z])", folded(name)))


def missing_name(names: Collection[str], reading: Reading) -> str:
    """The first class that the user named and that is not among the folded names that there are, or an empty string."""
    return next((name for name in (*reading.normal, *reading.abnormal) if folded(name) not in names), "")


def named_roles(reading: Reading) -> dict[str, int]:
    """The classes that the user named, by folded name."""
    return {
        **dict.fromkeys(map(folded, reading.normal), 0),
        **dict.fromkeys(map(folded, reading.abnormal), 1),
    }


def folder_roles(names: Collection[str], holding: Collection[str], reading: Reading) -> dict[str, int]:
    """Labels of class folders, by folded name; folders that are missing here are no classes.

    Args:
        names: Folded names of all folders that may be classes, of all splits.
        holding: Those that hold an image.
        reading: What the user named; it is all that counts where both sides are named.

    Raises:
        DataError: A folder that the user named is not there.
    """
    named = named_roles(reading)
    if missing := missing_name(names, reading):
        raise DataError(f"no folder {missing!r} that was named as a class; there are: {', '.join(sorted(names))}")
    known = {**dict.fromkeys(NORMAL_FOLDERS, 0), **dict.fromkeys(ABNORMAL_FOLDERS, 1)}
    if named:
        own = {} if reading.normal and reading.abnormal else known
        return {**{name: own[name] for name in names if name in own}, **named}
    roles = {name: known[name] for name in names if name in known}
    if len(holding) == 2 and len(set(roles.values())) < 2 and "good" not in holding:
        words = {**dict.fromkeys(NORMAL_NAMES, 0), **dict.fromkeys(ABNORMAL_NAMES, 1)}
        pair = {name: words[name] for name in holding if name in words}
        if len(pair) == 2 and len(set(pair.values())) == 2:
            return pair
    return roles


def meant(name: str, words: Iterable[str]) -> str:
    """A hint which of some words a name was perhaps meant to be, or an empty string."""
    close = difflib.get_close_matches(folded(name), list(words), n=1, cutoff=0.75)
    return f"did you mean {close[0]}?" if close and close[0] != folded(name) else ""
