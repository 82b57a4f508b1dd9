"""Every choice of a detector in one frozen dataclass, and the presets."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from madclip.errors import RecipeError
from madclip.grey_range import parse_grey_range

AdapterActivation = Literal["relu", "leaky_relu"]
AdapterNorm = Literal["none", "layer_norm"]
Position = Literal["end", "front", "middle"]
ImageScore = Literal["mean", "max", "both", "by_task", "by_classes"]
Loss = Literal["siglip", "softmax"]
Jitter = Literal["per_image", "per_class"]
Aspect = Literal["stretch", "pad"]
Axis = Literal["axial", "coronal", "sagittal", "0", "1", "2"]
Schedule = Literal["constant", "cosine"]
BackboneActivation = Literal["weights", "gelu", "quick_gelu"]
TextAttention = Literal["native", "full"]


@dataclass(frozen=True)
class View:
    """How an image is brought before the backbone; all that who only resizes needs of a recipe.

    Attributes:
        size: Side S of the square, pixels.
        aspect: `stretch` to the square as the paper does, or `pad` the shorter side with zeros, equally on both ends.
        normalise: Whether pixels are normalised by the backbone's mean and standard deviation.
        grey_range: Which stored values become black and white, as `madclip.grey_range` reads it.
        tile: Side of the squares that an image is seen in, pixels of the image; 0 sees it whole.
    """

    size: int
    aspect: Aspect = "stretch"
    normalise: bool = True
    grey_range: str = "file"
    tile: int = 0


MIN_TILE = 32
"""Smaller tiles show nothing."""
PAPER_VARIANTS = (
    "identity",
    "rotate-22.5",
    "rotate-11.25",
    "rotate+11.25",
    "rotate+22.5",
    "translate++",
    "translate-+",
    "translate--",
    "translate+-",
    "flip-horizontal",
    "flip-vertical",
)
"""The 11 variants of MVFA, which the paper follows."""

ALL_VARIANTS = (*PAPER_VARIANTS[:9], "zoom1.1", "zoom1.15", "zoom1.2", "zoom1.3", "jitter", *PAPER_VARIANTS[9:])
"""The 16 variants of the released code (method.md, section 6), in its order."""


def _field(default: Any, meaning: str, low: float | None = None, high: float | None = None) -> Any:
    """A field with what there is to know of it: its default, one sentence, and its range where it is a number."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high})


@dataclass(frozen=True)
class Recipe:
    """Every choice of a detector; each field's type, default, range and meaning stand beside it.

    The fields of ablations a to f are marked with their letter.
    """

    name: str = _field("madclip", "Preset that the recipe started from.")
    image_size: int = _field(240, "Side in pixels of the square that the backbone sees.", 1, 4096)
    aspect: Aspect = _field("stretch", "`stretch` to the square as the paper does, or `pad` the shorter side.")
    normalise: bool = _field(True, "Whether pixels are normalised by the backbone's mean and standard deviation.")
    grey_range: str = _field(
        "file",
        "Which stored values become black and white: `file` (what the file itself says, else its full range), `full`, "
        "`data`, `LOW,HIGH` in stored values, `pLOW,pHIGH` in percentiles of each image or volume, or `window:C,W`.",
    )
    axis: Axis = _field(
        "axial", "How volumes are cut into slices: `axial`, `coronal`, `sagittal`, or across an axis on disk."
    )
    tile: int = _field(
        0,
        "Side in pixels of the squares in which a large image is seen, for lesions that are lost when the whole is "
        "made small; 0 sees it whole.",
        0,
        16384,
    )
    backbone_activation: BackboneActivation = _field(
        "weights", "MLP activation of both towers: as the weights say, or overridden."
    )
    adapter_activation: AdapterActivation = _field(
        "relu", "Activation after every adapter layer (equation 1 says ReLU, the released code LeakyReLU(0.01))."
    )
    adapter_norm: AdapterNorm = _field("none", "Normalisation after the shared layer, without parameters.")
    adapters_per_tower: bool = _field(
        False,
        "Whether each of several towers has adapters of its own, whose features are added, instead of one set that "
        "reads their tokens side by side.",
    )
    dual_branch: bool = _field(True, "False (c): one set of adapters serves both branches, so O_n = O_ab.")
    separate_heads: bool = _field(True, "False (f): one head per branch serves detection and segmentation.")
    learned_prompts: bool = _field(True, "False (a): the fixed ensemble of hand-crafted templates.")
    use_objective: bool = _field(True, 'False (b): the objective is replaced by "medical image".')
    contexts: int = _field(8, "Learned context tokens per prompt (M).", 0, 64)
    shared_contexts: bool = _field(False, "One set of contexts per class and position rather than one per prompt.")
    positions: tuple[Position, ...] = _field(("end",), "Where the contexts stand; one group of prompts for each.")
    text_attention: TextAttention = _field(
        "native", "`full` drops the causal mask and attends to padding, as the released code does."
    )
    contrast: bool = _field(True, "False (d): the opposite class is not subtracted in the scores.")
    loss: Loss = _field("siglip", "Image-level loss on the detection scores: `siglip`, or `softmax` (ablation e).")
    temperature: float = _field(1.0, "t of the SigLIP term, which multiplies S.", 1e-3, 1e3)
    bias: float = _field(0.0, "b of the SigLIP term, which is added to it.", -1e3, 1e3)
    image_score: ImageScore = _field(
        "both",
        "`mean` of the detection head's patches, `max` of the map, `both`: the mean of these two; `by_task`: `max` "
        "where there were masks to learn from, else `mean` (as the released code does); or `by_classes`: `max` where "
        "both classes were learned from, else `both`.",
    )
    text_weight: float = _field(
        0.2,
        "Weight of the fixed prompts beside the memory of patches, in a detector of normal images alone.",
        0.0,
        1.0,
    )
    align_corners: bool = _field(False, "Whether interpolation maps corner patches to corner pixels.")
    smoothing: float = _field(0.0, "Smoothing of the focal term's target (released code: 1e-5).", 0.0, 0.1)
    variants: tuple[str, ...] = _field(ALL_VARIANTS, "Augmented copies of every shot, by name.")
    jitter: Jitter = _field(
        "per_image", "Colour jitter is drawn for each image, or once for a class as the released code does."
    )
    learning_rate: float = _field(2e-3, "Adam's learning rate, for adapters and contexts alike.", 1e-8, 10.0)
    betas: tuple[float, float] = _field((0.5, 0.999), "Adam's (beta1, beta2).")
    weight_decay: float = _field(0.0, "Adam's decoupled weight decay.", 0.0, 10.0)
    schedule: Schedule = _field("cosine", "How the learning rate goes over the whole fit.")
    batch_size: int = _field(16, "Images per step.", 1, 4096)
    epochs: int = _field(3, "Passes over shots x variants.", 1, 100_000)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name, hint in hints.items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), hint))
        # Two spellings of one range are one recipe, and one key of the token cache.
        object.__setattr__(self, "grey_range", str(parse_grey_range(self.grey_range)))
        _check_ranges(self)

    @property
    def view(self) -> View:
        """How images are brought before the backbone."""
        return View(self.image_size, self.aspect, self.normalise, self.grey_range, self.tile)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Recipe:
        """A preset by name, with fields changed.

        Raises:
            RecipeError: No preset or no field has that name, or a value does not fit.
        """
        if name not in PRESETS:
            raise RecipeError(f"unknown recipe {name!r}: choose one of {', '.join(PRESETS)}")
        return PRESETS[name].replace(**changes)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The recipe that `to_dict` wrote, also an earlier version's; fields not named keep the preset's values.

        Raises:
            RecipeError: A field that is gone has a value that had an effect; or see `preset`.
        """
        values = dict(values)
        for name, neutral in REMOVED.items():
            if (value := values.pop(name, neutral)) != neutral:
                raise RecipeError(
                    f"recipe field {name!r} is {value!r}, which this version cannot do any more; fit anew"
                )
        return cls.preset(values.pop("name", "madclip"), **values)

    def replace(self, **changes: Any) -> Recipe:
        """This recipe with fields changed.

        Raises:
            RecipeError: No field has that name, or a value does not fit.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise RecipeError(f"unknown recipe field {name!r}{hint}; fields: {', '.join(known)}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def parse_field(text: str) -> tuple[str, Any]:
    """A change of a recipe as typed on a command line: `epochs=20`, `positions=end,front`, `contrast=false`.

    Raises:
        RecipeError: Not of the form name=value, or the value is not of the field's type.
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise RecipeError(f"{text!r} is not of the form FIELD=VALUE")
    hint = get_type_hints(Recipe).get(name)
    if hint is None:
        Recipe().replace(**{name: value})
    if get_origin(hint) is tuple:
        return name, tuple(_parse_scalar(name, part, get_args(hint)[0]) for part in value.split(",") if part)
    return name, _parse_scalar(name, value, hint)


def _parse_scalar(name: str, value: str, hint: Any) -> Any:
    if hint is bool:
        if value.lower() not in ("true", "false"):
            raise RecipeError(f"recipe field {name!r} is true or false, not {value!r}")
        return value.lower() == "true"
    if hint in (int, float):
        try:
            return hint(value)
        except ValueError:
            raise RecipeError(f"recipe field {name!r} is a number, not {value!r}") from None
    return value


def _checked(name: str, value: Any, hint: Any) -> Any:
    """The value in its field's type, where nothing is lost by it."""
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"recipe field {name!r} is a list, not {value!r}")
        inner = get_args(hint)[0]
        return tuple(_checked(name, item, inner) for item in value)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise RecipeError(f"recipe field {name!r} is one of {', '.join(get_args(hint))}, not {value!r}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RecipeError(f"recipe field {name!r} is of type {hint.__name__}, not {value!r}")
    return value


def _check_ranges(recipe: Recipe) -> None:
    for one in dataclasses.fields(recipe):
        low, high, value = one.metadata["low"], one.metadata["high"], getattr(recipe, one.name)
        if low is not None and not (math.isfinite(value) and low <= value <= high):
            raise RecipeError(f"recipe field {one.name!r} lies between {low} and {high}, not {value}")
    if len(recipe.betas) != 2 or not all(0 <= beta < 1 for beta in recipe.betas):
        raise RecipeError(f"recipe field 'betas' is two numbers in [0, 1), not {recipe.betas}")
    for name in ("positions", "variants"):
        values = getattr(recipe, name)
        if not values or len(set(values)) != len(values):
            raise RecipeError(f"recipe field {name!r} needs at least one entry and none twice, not {values}")
    if "identity" not in recipe.variants:
        raise RecipeError("recipe field 'variants' needs 'identity': the images as they are")
    if 0 < recipe.tile < MIN_TILE:
        raise RecipeError(f"recipe field 'tile' is 0 or at least {MIN_TILE} pixels, not {recipe.tile}")
    unknown = set(recipe.variants) - set(ALL_VARIANTS)
    if unknown:
        raise RecipeError(f"unknown variants {sorted(unknown)}: choose among {', '.join(ALL_VARIANTS)}")


REMOVED: dict[str, Any] = {"average": 0.0}
"""Fields of earlier versions, with the value at which they did nothing."""

PRESETS: dict[str, Recipe] = {
    "madclip": Recipe(),
    "fused": Recipe(name="fused", image_score="by_classes"),
    "paper": Recipe(
        name="paper",
        shared_contexts=True,
        image_score="mean",
        variants=PAPER_VARIANTS,
        learning_rate=1e-3,
        schedule="constant",
        epochs=60,
    ),
    "released": Recipe(
        name="released",
        normalise=False,
        backbone_activation="gelu",
        adapter_activation="leaky_relu",
        adapter_norm="layer_norm",
        positions=("end", "front", "middle"),
        text_attention="full",
        image_score="by_task",
        align_corners=True,
        smoothing=1e-5,
        jitter="per_class",
        learning_rate=1e-3,
        schedule="constant",
        epochs=60,
    ),
}
"""`released`: the released code, number for number. `paper`: the paper's equations, CLIP used as it was pre-trained.
`madclip`: the best of what was measured; docs/recipes.md has each departure with its measurement. `fused`: the same for
several towers, with the image score that was best there; `backbones.names.default_recipe` says when it is taken."""
