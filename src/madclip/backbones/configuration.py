"""The sizes of a CLIP or SigLIP: the one description that readers of every format give and modules are built from."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from madclip.backbones.spec import Activation

Family = Literal["clip", "siglip", "bert"]
"""`bert` is a plain ViT beside a BERT, as in BiomedCLIP."""

DEFAULTS: dict[Family, dict[str, Any]] = {
    "clip": {
        "projection_dim": 512,
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "image_size": 224,
            "patch_size": 32,
        },
        "text_config": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "vocab_size": 49408,
            "max_position_embeddings": 77,
        },
    },
    "siglip": {
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "image_size": 224,
            "patch_size": 16,
        },
        "text_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "vocab_size": 32000,
            "max_position_embeddings": 64,
        },
    },
}
"""CLIPConfig's and SiglipConfig's: since version 5, transformers writes only what differs from them."""

COUNT_LIMIT = 2**20


@dataclass(frozen=True)
class TowerConfig:
    """One tower, in the names of config.json.

    Raises:
        ValueError: No such tower can be.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: Activation
    layer_norm_eps: float

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type in ("int", int) and field.default is MISSING:
                _check_count(field.name, getattr(self, field.name))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{self.num_attention_heads} attention heads do not fit a hidden_size of {self.hidden_size}"
            )
        if not isinstance(self.layer_norm_eps, float) or not 0 < self.layer_norm_eps < 1:
            raise ValueError(f"layer_norm_eps should be a small number above 0, not {self.layer_norm_eps!r}")


@dataclass(frozen=True)
class VisionConfig(TowerConfig):
    """The vision tower; square images and patches, sides in pixels."""

    image_size: int
    patch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < self.patch_size:
            raise ValueError(f"an image_size of {self.image_size} is less than a patch of {self.patch_size}")


@dataclass(frozen=True)
class TextConfig(TowerConfig):
    """The text tower."""

    vocab_size: int
    max_position_embeddings: int


@dataclass(frozen=True)
class ModelConfig:
    """Both towers and the size of the space that they share.

    Raises:
        ValueError: No such model can be.
    """

    family: Family
    vision: VisionConfig
    text: TextConfig
    embed_dim: int

    def __post_init__(self) -> None:
        _check_count("the size of the shared space", self.embed_dim)

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: a class token; SigLIP has none."""
        return int(self.family != "siglip")

    def with_activation(self, activation: Activation) -> ModelConfig:
        """The same sizes with another activation in both towers."""
        vision, text = replace(self.vision, hidden_act=activation), replace(self.text, hidden_act=activation)
        return replace(self, vision=vision, text=text)

    def to_json(self) -> dict[str, Any]:
        """The config.json that transformers reads for this model."""
        vision, text = asdict(self.vision), asdict(self.text)
        if self.family == "siglip":
            text["projection_size"] = self.embed_dim
            return {"model_type": "siglip", "vision_config": vision, "text_config": text}
        size = {"projection_dim": self.embed_dim}
        return {"model_type": "clip", **size, "vision_config": vision | size, "text_config": text | size}


def read_config(family: Family, config: dict[str, Any]) -> ModelConfig:
    """The model that a config.json describes; what it leaves out takes the defaults of transformers.

    Raises:
        ValueError: No such model can be.
    """
    defaults = DEFAULTS[family]
    vision = VisionConfig(**_values(VisionConfig, defaults["vision_config"] | config["vision_config"]))
    text = TextConfig(**_values(TextConfig, defaults["text_config"] | config["text_config"]))
    if family == "clip":
        return ModelConfig(family, vision, text, (defaults | config)["projection_dim"])
    size = config["text_config"].get("projection_size")
    return ModelConfig(family, vision, text, text.hidden_size if size is None else size)


def _values(kind: type[TowerConfig], given: dict[str, Any]) -> dict[str, Any]:
    return {field.name: given[field.name] for field in fields(kind)}


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= COUNT_LIMIT:
        raise ValueError(f"{name} should be a count, not {value!r}")
