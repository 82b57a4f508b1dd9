"""What the name of a backbone says before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from madclip.errors import RecipeError

if TYPE_CHECKING:
    from madclip.backbones.spec import Backbone

DEFAULT_BACKBONE = "tiny+lite0"
"""What is taken where no backbone is named: `tiny`, whose texts count, and a tower that has seen photographs."""


def split_names(source: str | Path) -> list[str | Path]:
    """The backbones that `A+B+C` names; a path that exists is one, whatever its name.

    Raises:
        RecipeError: A name is empty.
    """
    if isinstance(source, Path) or "+" not in source or Path(source).expanduser().exists():
        return [source]
    names = [name.strip() for name in source.split("+")]
    if not all(names):
        raise RecipeError(f"{source!r} names no backbone on one side of a +: write for example tiny+lite0")
    return [*names]


def default_recipe(backbone: str | Path | Backbone) -> str:
    """The preset that is taken where no recipe is named: `fused` with several towers, `madclip` with one.

    Raises:
        RecipeError: See `split_names`.
    """
    towers = split_names(backbone) if isinstance(backbone, (str, Path)) else backbone.towers
    return "fused" if len(towers) > 1 else "madclip"
