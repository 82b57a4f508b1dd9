"""Every choice of a detector in one frozen dataclass, and the presets."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from madclip.errors import RecipeError

AdapterActivation = Literal["relu", "leaky_relu"]
AdapterNorm = Literal["none", "layer_norm"]
Position = Literal["end", "front", "middle"]
ImageScore = Literal["mean", "max", "both", "by_task"]
Loss = Literal["siglip", "softmax"]
Jitter = Literal["per_image", "per_class"]
Aspect = Literal["stretch", "pad"]
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
    """

    size: int
    aspect: Aspect = "stretch"
    normalise: bool = True


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


@dataclass(frozen=True)
class Recipe:
    """Every choice of a detector. The fields of ablations a to f are marked with their letter.

    Attributes:
        name: Preset that the recipe started from.
        image_size: Side in pixels of the square that the backbone sees.
        aspect: `stretch` to the square as the paper does, or `pad` the shorter side.
        normalise: Whether pixels are normalised by the backbone's mean and std.
        backbone_activation: MLP activation of both towers: as the weights say, or overridden.
        adapter_activation: After every adapter layer (equation 1 says ReLU, the released code LeakyReLU(0.01)).
        adapter_norm: Normalisation after the shared layer, without parameters.
        dual_branch: False (c): one set of adapters serves both branches, so O_n = O_ab.
        separate_heads: False (f): one head per branch serves detection and segmentation.
        learned_prompts: False (a): the fixed ensemble of hand-crafted templates.
        use_objective: False (b): the objective is replaced by "medical image".
        contexts: Learned context tokens per prompt (M).
        shared_contexts: One set of contexts per class and position rather than one per prompt.
        positions: Where the contexts stand; one group of prompts for each.
        text_attention: `full` drops the causal mask and attends to padding, as the released code does.
        contrast: False (d): the opposite class is not subtracted in the scores.
        loss: Of the detection head: SigLIP, or softmax (e).
        temperature: t of the SigLIP term; S is multiplied by it.
        bias: b of the SigLIP term, added.
        image_score: `mean` of the detection head's patches, `max` of the map, `both`: the mean of these two, or
            `by_task`: `max` where there were masks to learn from, else `mean` (as the released code does).
        align_corners: Of the bilinear interpolation of maps.
        smoothing: Of the focal term's target (released code: 1e-5).
        variants: Augmented copies of every shot, by name.
        jitter: Colour jitter drawn for each image, or once for a class as the released code does.
        learning_rate: Of Adam, for adapters and contexts alike.
        betas: Of Adam.
        weight_decay: Decoupled.
        schedule: Of the learning rate over the whole fit.
        batch_size: Images per step.
        epochs: Passes over shots x variants.
        average: Decay of the exponential moving average of the weights that is kept; 0 keeps the last weights.
    """

    name: str = "madclip"
    image_size: int = 240
    aspect: Aspect = "stretch"
    normalise: bool = True
    backbone_activation: BackboneActivation = "weights"
    adapter_activation: AdapterActivation = "relu"
    adapter_norm: AdapterNorm = "none"
    dual_branch: bool = True
    separate_heads: bool = True
    learned_prompts: bool = True
    use_objective: bool = True
    contexts: int = 8
    shared_contexts: bool = False
    positions: tuple[Position, ...] = ("end",)
    text_attention: TextAttention = "native"
    contrast: bool = True
    loss: Loss = "siglip"
    temperature: float = 1.0
    bias: float = 0.0
    image_score: ImageScore = "both"
    align_corners: bool = False
    smoothing: float = 0.0
    variants: tuple[str, ...] = ALL_VARIANTS
    jitter: Jitter = "per_image"
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    schedule: Schedule = "cosine"
    batch_size: int = 16
    epochs: int = 3
    average: float = 0.0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name, hint in hints.items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), hint))
        _check_ranges(self)

    @property
    def view(self) -> View:
        """How images are brought before the backbone."""
        return View(self.image_size, self.aspect, self.normalise)

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
        """The recipe that `to_dict` wrote; fields not named keep the preset's values."""
        values = dict(values)
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
    limits = {
        "image_size": (1, 4096),
        "contexts": (0, 64),
        "temperature": (1e-3, 1e3),
        "bias": (-1e3, 1e3),
        "smoothing": (0.0, 0.1),
        "learning_rate": (1e-8, 10.0),
        "weight_decay": (0.0, 10.0),
        "batch_size": (1, 4096),
        "epochs": (1, 100_000),
        "average": (0.0, 0.99999),
    }
    for name, (low, high) in limits.items():
        value = getattr(recipe, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise RecipeError(f"recipe field {name!r} lies between {low} and {high}, not {value}")
    if len(recipe.betas) != 2 or not all(0 <= beta < 1 for beta in recipe.betas):
        raise RecipeError(f"recipe field 'betas' is two numbers in [0, 1), not {recipe.betas}")
    for name in ("positions", "variants"):
        values = getattr(recipe, name)
        if not values or len(set(values)) != len(values):
            raise RecipeError(f"recipe field {name!r} needs at least one entry and none twice, not {values}")
    if "identity" not in recipe.variants:
        raise RecipeError("recipe field 'variants' needs 'identity': the images as they are")
    unknown = set(recipe.variants) - set(ALL_VARIANTS)
    if unknown:
        raise RecipeError(f"unknown variants {sorted(unknown)}: choose among {', '.join(ALL_VARIANTS)}")


PRESETS: dict[str, Recipe] = {
    "madclip": Recipe(),
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
`madclip`: the best of what was measured; docs/recipes.md has each departure with its measurement."""
