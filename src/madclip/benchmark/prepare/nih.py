"""NIHChest, ChestX-ray14: `Data_Entry_2017.csv`, PNG files in `images_001/images` and so on, `test_list.txt`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from madclip.benchmark.prepare.layout import SPLIT_RULE, Original, split_patients
from madclip.benchmark.prepare.tables import read_rows
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

RULE = f"The images of test_list.txt, where it is there, else all. No Finding against any finding. {SPLIT_RULE}"
NORMAL = "No Finding"


def read_originals(source: Path, seed: int) -> list[Original]:
    """Every image of the list.

    Raises:
        DataError: The table or an image is missing.
    """
    tables = sorted(source.rglob("Data_Entry_2017*.csv"))
    if not tables:
        raise DataError(f"{source}: no Data_Entry_2017.csv; is the download complete?")
    lists = sorted(source.rglob("test_list*.txt"))
    wanted = set(lists[0].read_text(encoding="utf-8").split()) if lists else None
    images = {path.name: path for path in source.rglob("*.png")}
    found = {}
    for where, row in read_rows(tables[0], ("Image Index", "Finding Labels", "Patient ID")):
        name, findings = row["Image Index"], {part.strip() for part in row["Finding Labels"].split("|")}
        if wanted is not None and name not in wanted:
            continue
        if name not in images:
            raise DataError(f"{where}: no image {name!r} in the folders; is the download complete?")
        if not row["Patient ID"] or "" in findings:
            raise DataError(f"{where}: no patient, or no finding")
        found[name] = Original(images[name], int(findings != {NORMAL}), row["Patient ID"])
    if not found:
        raise DataError(f"{tables[0]}: names none of the images that are wanted")
    return split_patients(found.values(), seed)
