"""The toy CLIP and detector of the golden values, written as the files that users have."""

import torch
import weights


def clip_state(salt=weights.SALT):
    return {
        name: torch.from_numpy(weights.clip_tensor(name, shape, salt)) for name, shape in weights.clip_shapes().items()
    }


def write_openai(path, salt=weights.SALT):
    torch.save(clip_state(salt), path)
    return path


def write_released(path, salt=weights.SALT):
    """A published `.pth`: four state dicts, two of them with a copy of the text tower."""
    clip = {f"clip_model.{name}": value for name, value in clip_state().items() if not name.startswith("visual.")}
    state = {}
    for branch in ("normal", "abnormal"):
        adapters = {}
        for tap in range(4):
            for layer, shape in ((1, (128, 128)), (2, (48, 128)), (3, (48, 128))):
                name = f"{tap}.fc{layer}.0.weight"
                adapters[name] = torch.from_numpy(weights.adapter_tensor(f"{branch}_det_adapters.{name}", shape, salt))
        state[f"{branch}_det_adapters"] = adapters
        contexts = {}
        for position in ("end", "front", "middle"):
            name = f"prompt_learner.ctx.{branch}_{position}"
            key = next(c for c in context_names() if c.endswith(f"ctx.{branch}_{position}"))
            contexts[name] = torch.from_numpy(weights.context_tensor(key, (7, 8, 64), salt))
        state[f"prompt_maker_{branch}"] = contexts | clip
    torch.save(state, path)
    return path


def context_names():
    return [
        f"prompt_maker_{branch}.prompt_learner.ctx.{branch}_{position}"
        for branch in ("normal", "abnormal")
        for position in ("end", "front", "middle")
    ]


def write_huggingface(openai, folder):
    """The same weights as transformers would save them."""
    from transformers import CLIPConfig, CLIPModel

    state = torch.load(openai, weights_only=True)
    vision, text = weights.VISION, weights.TEXT
    config = CLIPConfig(
        projection_dim=weights.EMBED_DIM,
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["heads"],
            "patch_size": vision["patch_size"],
            "image_size": vision["image_size"],
            "hidden_act": "quick_gelu",
        },
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "hidden_act": "quick_gelu",
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
    )
    model = CLIPModel(config)
    own = model.state_dict()
    for name, value in state.items():
        for theirs, tensor in _renamed(name, value):
            assert own[theirs].shape == tensor.shape, name
            own[theirs].copy_(tensor)
    model.save_pretrained(folder)
    return folder


def _renamed(name, value):
    """Names and tensors in transformers' naming for one tensor in OpenAI's."""
    direct = {
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight",
        "ln_final.bias": "text_model.final_layer_norm.bias",
        "logit_scale": "logit_scale",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
        "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
        "visual.ln_post.weight": "vision_model.post_layernorm.weight",
        "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    }
    if name in direct:
        return [(direct[name], value)]
    if name in ("visual.proj", "text_projection"):
        return [("visual_projection.weight" if "visual" in name else "text_projection.weight", value.T)]
    tower, rest = ("vision_model", name.removeprefix("visual.")) if name.startswith("visual.") else ("text_model", name)
    _, _, block, layer = rest.split(".", 3)
    place = f"{tower}.encoder.layers.{block}."
    if layer.startswith("attn.in_proj"):
        kind = layer.rsplit("_", 1)[1]
        return [(f"{place}self_attn.{p}_proj.{kind}", part) for p, part in zip("qkv", value.chunk(3), strict=True)]
    for theirs, ours in (
        ("attn.out_proj", "self_attn.out_proj"),
        ("ln_", "layer_norm"),
        ("c_fc", "fc1"),
        ("c_proj", "fc2"),
    ):
        layer = layer.replace(theirs, ours)
    return [(place + layer, value)]
