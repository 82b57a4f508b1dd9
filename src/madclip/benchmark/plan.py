"""What the cells of an experiment share: the plan, and the data sets it is carried out on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from madclip.benchmark.registry import by_folder, by_name, registered
from madclip.errors import DataError, RecipeError
from madclip.recipe import PRESETS

if TYPE_CHECKING:
    from pathlib import Path

    from madclip.benchmark.registry import RegisteredSet
    from madclip.evaluation.protocol import PixelSize
    from madclip.training.selection import Select


@dataclass(frozen=True)
class Plan:
    """All that a number depends on besides its cell.

    Attributes:
        experiment: Its name.
        backbone: As for `MadCLIP`.
        folders: Where each set is.
        objectives: What the images of each set show, by set.
        changes: Changed fields of the recipe, for MadCLIP's own presets.
        select: Which epoch is kept, for MadCLIP's own presets.
        pixel_size: Where pixel metrics are computed.
        threads: Threads of torch in each worker.
        device: As for `MadCLIP`.
    """

    experiment: str
    backbone: str
    folders: dict[str, Path]
    objectives: dict[str, str]
    changes: dict[str, Any]
    select: Select = "last"
    pixel_size: PixelSize = "recipe"
    threads: int = 1
    device: str = "auto"

    def image_size(self) -> int:
        """Side in pixels of what the backbone sees."""
        from madclip.recipe import Recipe

        return Recipe(**self.changes).image_size

    def selected(self, method: str) -> str:
        """How a method's epoch was selected; nothing where it selects none."""
        return self.select if method.partition("-")[0] in PRESETS else ""

    def to_dict(self) -> dict[str, Any]:
        """What must be the same for a run to go on; folders may move, and sets may join."""
        return {k: v for k, v in asdict(self).items() if k not in ("folders", "objectives", "backbone")}


class FoundSets(NamedTuple):
    """What a folder of data sets holds.

    Attributes:
        folders: Where each set is, by the registered name or by the folder's own.
        others: Why a folder is no data set, by the folder's name.
        said: One line for each folder whose name could be misread.
        unmasked: Sets without masks among the images that shots come from.
    """

    folders: dict[str, Path]
    others: dict[str, str]
    said: list[str]
    unmasked: set[str]


def find_sets(root: Path) -> FoundSets:
    """Data sets below a folder.

    A folder is a registered set only where `data prepare` made it, or where it has exactly the set's name or that of a
    published download; `brain` is somebody's own set.

    Raises:
        DataError: There is none, or one twice.
    """
    from madclip.data.load import load_dataset

    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    folders: dict[str, Path] = {}
    others: dict[str, str] = {}
    said: list[str] = []
    unmasked: set[str] = set()
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            data = load_dataset(folder)
            entry = prepared_set(folder) or by_folder(folder.name)
        except DataError as error:
            others[folder.name] = str(error)
            continue
        name = entry.name if entry else folder.name
        if name in folders:
            raise DataError(f"{folder} and {folders[name]} are both {name}: keep one of them in {root}")
        folders[name] = folder
        said += _said(folder.name, entry)
        if not any(sample.mask for sample in data.shot_pool):
            unmasked.add(name)
    if not folders:
        raise DataError(f"{root}: no folder in it is a data set; `madclip data check FOLDER` says why")
    return FoundSets(folders, others, said, unmasked)


def _said(folder: str, entry: RegisteredSet | None) -> list[str]:
    if entry:
        return [] if entry.name == folder else [f"{folder}: taken for the registered set {entry.name}"]
    try:
        near = registered(folder).name
    except RecipeError:
        return []
    return [f"{folder}: taken for a set of your own; if it is the registered {near}, name the folder {near}"]


def prepared_set(folder: Path) -> RegisteredSet | None:
    """The registered set that `madclip data prepare` made a folder from.

    Raises:
        DataError: Its prepared.json is damaged.
    """
    path = folder / "prepared.json"
    if not path.exists():
        return None
    try:
        return by_name(json.loads(path.read_text(encoding="utf-8"))["set"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); prepare the set again") from error


def own_splits(folders: dict[str, Path]) -> set[str]:
    """Sets that were prepared here from originals whose split was not published."""
    made = {name: prepared_set(folder) for name, folder in folders.items()}
    return {name for name, entry in made.items() if entry and entry.own_split}
