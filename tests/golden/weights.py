"""The toy CLIP, initial adapters and contexts behind the golden values: each tensor follows from its name."""

import zlib

import numpy as np

VISION = {"width": 128, "layers": 24, "patch_size": 14, "image_size": 84, "heads": 2}
TEXT = {"width": 64, "layers": 3, "heads": 1, "context_length": 77, "vocab_size": 49408}
EMBED_DIM = 48
SALT = "public"


def normal(name: str, shape: tuple[int, ...], salt: str = SALT) -> np.ndarray:
    """Standard normal float32 values that depend on the name alone."""
    seed = zlib.crc32(f"{salt}/{name}".encode())
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def clip_tensor(name: str, shape: tuple[int, ...], salt: str = SALT) -> np.ndarray:
    """A tensor of CLIP's state dict, by its name in OpenAI's naming."""
    x = normal(name, shape, salt)
    leaf = name.rsplit(".", maxsplit=1)[-1]
    if leaf == "logit_scale":
        return np.full(shape, np.log(1 / 0.07), np.float32)
    if leaf == "weight" and any(ln in name for ln in ("ln_1", "ln_2", "ln_pre", "ln_post", "ln_final")):
        return 1 + np.float32(0.1) * x
    if leaf.endswith("bias"):
        return np.float32(0.1) * x
    if name in (
        "positional_embedding",
        "visual.positional_embedding",
        "visual.class_embedding",
        "token_embedding.weight",
    ):
        return np.float32(0.2) * x
    if name in ("visual.proj", "text_projection"):
        return x / np.float32(np.sqrt(shape[0]))
    return x / np.float32(np.sqrt(np.prod(shape[1:])))


def clip_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the toy CLIP's state dict, in OpenAI's naming."""

    def tower(prefix: str, width: int, layers: int) -> dict[str, tuple[int, ...]]:
        out: dict[str, tuple[int, ...]] = {}
        for i in range(layers):
            b = f"{prefix}transformer.resblocks.{i}."
            out |= {
                b + "ln_1.weight": (width,),
                b + "ln_1.bias": (width,),
                b + "attn.in_proj_weight": (3 * width, width),
                b + "attn.in_proj_bias": (3 * width,),
                b + "attn.out_proj.weight": (width, width),
                b + "attn.out_proj.bias": (width,),
                b + "ln_2.weight": (width,),
                b + "ln_2.bias": (width,),
                b + "mlp.c_fc.weight": (4 * width, width),
                b + "mlp.c_fc.bias": (4 * width,),
                b + "mlp.c_proj.weight": (width, 4 * width),
                b + "mlp.c_proj.bias": (width,),
            }
        return out

    v, t, p = VISION["width"], TEXT["width"], VISION["patch_size"]
    grid = VISION["image_size"] // p
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (TEXT["context_length"], t),
        "text_projection": (t, EMBED_DIM),
        "logit_scale": (),
        "visual.class_embedding": (v,),
        "visual.positional_embedding": (grid * grid + 1, v),
        "visual.proj": (v, EMBED_DIM),
        "visual.conv1.weight": (v, 3, p, p),
        "visual.ln_pre.weight": (v,),
        "visual.ln_pre.bias": (v,),
        "visual.ln_post.weight": (v,),
        "visual.ln_post.bias": (v,),
        "token_embedding.weight": (TEXT["vocab_size"], t),
        "ln_final.weight": (t,),
        "ln_final.bias": (t,),
    }
    return shapes | tower("visual.", v, VISION["layers"]) | tower("", t, TEXT["layers"])


def adapter_tensor(name: str, shape: tuple[int, int], salt: str = SALT) -> np.ndarray:
    """An initial adapter weight; name as in the released checkpoints, e.g. normal_det_adapters.0.fc1.0.weight."""
    return normal(name, shape, salt) / np.float32(np.sqrt(shape[-1]))


def context_tensor(name: str, shape: tuple[int, int, int], salt: str = SALT) -> np.ndarray:
    """Initial learned context; name e.g. prompt_maker_normal.prompt_learner.ctx.normal_end, shape [7, 8, 64]."""
    return np.float32(0.02) * normal(name, shape, salt)
