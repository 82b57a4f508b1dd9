"""Which images an exported model is checked and calibrated on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from madclip.data.arrays import read_pixels
from madclip.data.geometry import fit_pixels
from madclip.data.inputs import expand_inputs
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from madclip.data.ref import ImageRef
    from madclip.detector import MadCLIP

ENOUGH = 32
"""Images that a check wants: shots, and where they are fewer, others."""
PHANTOM_SEED = 30_000
PHANTOMS = "checked on phantoms, not on images: what holds for them need not hold for yours; give images (--data)"


@dataclass(frozen=True)
class CheckImages:
    """Images as the backbone sees them.

    Attributes:
        pixels: [N, 3, S, S] in 0..1.
        shots: How many of them are the detector's shots; these come first.
        others: Digests of the other images, which are seen from then on.
        note: What a reader must know of them.
    """

    pixels: npt.NDArray[np.float32]
    shots: int
    others: tuple[str, ...] = ()
    note: str = ""


def check_images(detector: MadCLIP, data: Path | Sequence[Path] | None) -> CheckImages:
    """The shots in `data`, filled up to `ENOUGH` with the first others that can be read, which need no labels.

    What lies in a folder `test` in `data` is left for evaluation, unless it is a shot. Of several places others are
    taken in turn.

    Args:
        detector: Fitted.
        data: A folder or an image, or several, as for the modalities of a joint detector; None draws phantoms, and
            says so.

    Raises:
        DataError: A shot cannot be read, or there is no image that can.
    """
    places = [data] if isinstance(data, Path) else list(data or ())
    if not places:
        return phantoms(detector)
    found = {place: expand_inputs([place], detector.recipe.axis).images for place in places}
    files = {image: image.digest() for images in found.values() for image in images}
    known = detector.provenance.shots
    shots = [file for file, digest in files.items() if digest in known]
    pixels = [_fitted(detector, file) for file in shots]
    others = {}
    unseen = [_not_test(place, (one for one in images if files[one] not in known)) for place, images in found.items()]
    for file in dict.fromkeys(one for turn in zip_longest(*unseen) for one in turn if one is not None):
        if len(pixels) >= ENOUGH:
            break
        try:
            pixels.append(_fitted(detector, file))
        except DataError:
            continue
        others[files[file]] = file
    if not pixels:
        named = ", ".join(map(str, places))
        raise DataError(f"{named}: none of its images can be read (what lies in test/ is left for evaluation)")
    few = "" if len(pixels) >= ENOUGH else f"only {len(pixels)} images: they show little; give {ENOUGH} or more"
    return CheckImages(np.stack(pixels), len(shots), tuple(sorted(others)), few)


def phantoms(detector: MadCLIP) -> CheckImages:
    """Phantoms of what the detector was fitted for, or generic ones, half of them with lesions."""
    from madclip.phantoms import generate
    from madclip.phantoms.captions import OBJECTIVES

    named = {objective.casefold(): modality for modality, objective in OBJECTIVES.items()}
    wanted = detector.objective.casefold()
    modality = next((m for objective, m in named.items() if wanted in (objective, m)), "generic")
    drawn = generate(modality, ENOUGH, PHANTOM_SEED, size=240).pixels.numpy().astype(np.float32) / 255
    view = detector.recipe.view
    return CheckImages(np.stack([fit_pixels(image, view).numpy() for image in drawn]), 0, (), PHANTOMS)


def _fitted(detector: MadCLIP, image: ImageRef) -> npt.NDArray[np.float32]:
    return fit_pixels(read_pixels(image, detector.recipe.view), detector.recipe.view).numpy()


def _not_test(data: Path, images: Iterable[ImageRef]) -> list[ImageRef]:
    return [one for one in images if not data.is_dir() or one.path.relative_to(data).parts[0].casefold() != "test"]
