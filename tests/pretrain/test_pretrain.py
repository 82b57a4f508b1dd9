from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tools.pretrain import data, losses, measure, neutral, state, train
from tools.pretrain.data import Stream
from tools.pretrain.export import export, table
from tools.pretrain.model import Block, TowerConfig, Towers, clip_config, clip_state, mimic_attention, patchify
from tools.pretrain.state import Plan
from tools.pretrain.teacher import Teacher
from tools.pretrain.texts import EVERYDAY, encode
from tools.pretrain.tokenizer import END, START, WORDS, learn_tokenizer
from transformers import CLIPConfig, CLIPModel

from madclip import load_backbone

SMALL = TowerConfig(
    image_size=48,
    width=32,
    depth=4,
    heads=2,
    mlp=48,
    embed_dim=16,
    vocabulary=600,
    text_width=16,
    text_depth=1,
    text_heads=2,
    text_mlp=32,
)
STREAM = Stream(seed=3, modalities=("brain", "chest"), size=48, fill=1, pool=2, batch=16, reuse=2)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_tokenizer(600)


def noisy(config: TowerConfig = SMALL) -> Towers:
    generator = torch.Generator().manual_seed(0)
    towers = Towers(config).initialise(generator)
    for parameter in towers.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return towers


def hugging_face(towers: Towers, end: int = 599) -> CLIPModel:
    model = CLIPModel(CLIPConfig(**clip_config(towers.config, start_id=end - 1, end_id=end)))
    missing, unexpected = model.load_state_dict(clip_state(towers), strict=False)
    assert not unexpected
    assert all("position_ids" in name for name in missing)
    return model.eval()


def test_vision_tower_is_hugging_faces_clip() -> None:
    towers = noisy()
    pixels = torch.rand(3, 3, 48, 48)
    streams = towers.vision(patchify(pixels, 12), torch.arange(16).expand(3, -1))
    model = hugging_face(towers)
    with torch.no_grad():
        out = model.vision_model(pixel_values=pixels, output_hidden_states=True)
        for tap, stream in zip(SMALL.taps, streams, strict=True):
            torch.testing.assert_close(out.hidden_states[tap], stream, atol=1e-5, rtol=1e-4)
        expected = model.visual_projection(out.pooler_output)
        torch.testing.assert_close(expected, towers.vision.embed(streams[-1][:, 0]), atol=1e-5, rtol=1e-4)


def test_text_tower_is_hugging_faces_clip(tokenizer: Tokenizer) -> None:
    towers = noisy()
    texts = ["damaged brain.", "a", "no finding in the chest X-ray film"]
    ids, end = encode(tokenizer, texts, 48)
    model = hugging_face(towers)
    with torch.no_grad():
        expected = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    torch.testing.assert_close(expected, towers.text(ids, end), atol=1e-5, rtol=1e-4)


def test_contexts_stand_after_the_start(tokenizer: Tokenizer) -> None:
    """A context equal to a word's embedding is that word."""
    towers = noisy()
    ids, end = encode(tokenizer, ["damaged brain"], 48)
    short = torch.cat([ids[:, :1], ids[:, 2:]], dim=1)
    contexts = towers.text.token(ids[:, 1:2])
    torch.testing.assert_close(towers.text(ids, end), towers.text(short, end - 1, contexts))


def test_tokenizer_learns_the_same_bytes_and_ends_with_start_and_end(tokenizer: Tokenizer) -> None:
    assert learn_tokenizer(600).to_str() == tokenizer.to_str()
    assert (tokenizer.token_to_id(START), tokenizer.token_to_id(END)) == (598, 599)


@given(st.text(max_size=30))
@settings(max_examples=50, deadline=None)
def test_every_text_encodes_without_unknowns(text: str) -> None:
    full = _shipped()
    ids = full.encode(text).ids
    assert ids[0] == full.token_to_id(START)
    assert ids[-1] == full.token_to_id(END)
    stripped = "".join(text.split())
    if stripped and full.normalizer.normalize_str(stripped).strip():
        assert len(ids) > 2


def _shipped() -> Tokenizer:
    if not hasattr(_shipped, "kept"):
        _shipped.kept = learn_tokenizer(2048)
    return _shipped.kept


def test_prompts_are_whole_words_and_short() -> None:
    tokens = _shipped().encode("histopathological image without damage.").tokens
    assert tokens == [START, "histopathological</w>", "image</w>", "without</w>", "damage</w>", ".</w>", END]


def test_chunks_are_pure_and_differ() -> None:
    first, again, second = (data.draw_chunk(STREAM, number) for number in (0, 0, 1))
    assert (first.pixels == again.pixels).all()
    assert first.attributes == again.attributes
    assert (first.pixels != second.pixels).any()
    lesion = (first.areas > 0).any(axis=1)
    assert lesion.tolist() == [of["label"] == 1 for of in first.attributes]


def test_mirrored_images_have_mirrored_words_and_masks() -> None:
    chunk = data.draw_chunk(STREAM, 0)
    where = torch.arange(16).repeat(16, 1)
    batch = data.view(STREAM, [chunk], 0, SMALL, 16)
    assert (batch.kept == where).all()
    assert sorted(batch.areas.sum(1).tolist()) == sorted((torch.from_numpy(chunk.areas).float() / 255).sum(1).tolist())


def test_lesions_are_kept_more_often_but_do_not_crowd() -> None:
    share = torch.zeros(64, 400)
    share[:32, 7] = 0.01
    generator = torch.Generator().manual_seed(0)
    kept = torch.cat([data.choose_patches(share, 100, generator) for _ in range(30)])
    ill = torch.arange(64).repeat(30) < 32
    seen = (kept == 7).any(1).float()
    assert seen[ill].mean() > 0.5
    assert seen[~ill].mean() > 0.3
    assert all(len(row.unique()) == 100 for row in kept[:5])


def test_siglip_is_the_papers_loop() -> None:
    logits = torch.randn(3, 4)
    match = torch.rand(3, 4) < 0.4
    expected = -sum(
        torch.log(torch.sigmoid((1 if match[i, j] else -1) * logits[i, j])) for i in range(3) for j in range(4)
    )
    torch.testing.assert_close(losses.siglip(logits, match, torch.ones(3, 4)), expected / 3)


def test_dense_loss_falls_towards_the_mask() -> None:
    areas = torch.tensor([[0.0, 0.5, 0.05, 0.0]])
    right = torch.tensor([[[-4.0, 4.0, -0.85, -4.0]]])
    assert losses.dense(right, areas) < losses.dense(torch.zeros(1, 1, 4), areas) < losses.dense(-right, areas)


def test_distillation_is_what_a_loop_over_patches_misses() -> None:
    predicted, target = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5) + 7
    found = losses.distillation(predicted, target)
    for tap in range(2):
        tokens = target[tap].flatten(0, 1)
        mean = sum(tokens) / 12
        missed = sum(((t - mean - p) ** 2).sum() for t, p in zip(tokens, predicted[tap].flatten(0, 1), strict=True))
        torch.testing.assert_close(found[tap], missed / sum(((t - mean) ** 2).sum() for t in tokens))


def test_a_teacher_gives_the_tokens_that_a_fused_backbone_has_of_the_same_view() -> None:
    stream, config = replace(STREAM, size=240, batch=6), TowerConfig()
    batch = data.view(stream, [data.draw_chunk(stream, 0)], 0, config, 30)
    shown = torch.stack([batch.tones[i, c][batch.pixels[i, c].long()] for i in range(6) for c in range(3)])
    shown = shown.view(6, 3, 240, 240)
    seen = patchify((shown - config.mean) / config.std, 12)
    rows = torch.arange(6)[:, None]
    assert torch.equal(batch.patches, seen[rows, batch.kept])
    fused = load_backbone("tiny+lite0", device="cpu")
    taps = fused.encode_image(fused.prepare(shown))
    expected = torch.stack([tap[:, fused.spec.prefix_tokens :, config.width :][rows, batch.kept] for tap in taps])
    found = Teacher("lite0", config, dtype="float32").tokens(batch)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_teacher_changes_nothing_of_how_the_towers_start() -> None:
    alone, taught = (
        Towers(replace(SMALL, taught=width)).initialise(torch.Generator().manual_seed(1)).state_dict()
        for width in (0, 320)
    )
    assert all(torch.equal(value, taught[name]) for name, value in alone.items())
    assert all((taught[name] == 0).all() for name in taught.keys() - alone.keys())


def test_the_rate_warms_up_stays_and_decays() -> None:
    plan = Plan(samples=1000, decay=160, full=0.5, rate=1.0, warmup=4)
    stable = state.Progress(step=10, samples=160)
    assert train.schedule(plan, state.Progress())[0] == 0.25
    assert train.schedule(plan, stable) == (1.0, False, False)
    assert train.schedule(plan, replace(stable, decay_from=80)) == (0.5, True, False)
    assert train.schedule(plan, replace(stable, samples=240, decay_from=80))[2]
    assert train.schedule(plan, replace(stable, samples=1000))[2]


def run_to_end(out: Path, tokenizer: Tokenizer, *, steps: int = 12, resume: bool = False, teacher: str = "") -> bytes:
    out.mkdir(exist_ok=True)
    plan = Plan(samples=16 * steps, decay=16 * (steps // 3), full=0.5, keep=0.5, warmup=2, teacher=teacher)
    config = replace(SMALL, taught=320) if teacher else SMALL
    run = state.load(out / "last.safetensors") if resume else state.start(plan, STREAM, config)
    train.train(run, tokenizer, out, device="cpu", workers=1, every=0.0, log=4)
    return _weights(out / "last.safetensors")


def _weights(path: Path) -> bytes:
    run = state.load(path)
    moments = [run.optimiser.state[p] for p in run.towers.parameters()]
    tensors = [p.detach() for p in run.towers.parameters()] + [m["exp_avg_sq"] for m in moments]
    return b"".join(t.numpy().tobytes() for t in tensors)


@pytest.mark.parametrize("teacher", ["", "lite0"])
def test_a_killed_run_resumes_to_the_same_bytes(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, teacher: str
) -> None:
    torch.set_num_threads(1)
    undisturbed = run_to_end(tmp_path / "a", tokenizer, teacher=teacher)
    genuine, calls = train.step_loss, iter(range(100))

    def dies(*args: object) -> object:
        if next(calls) == 9:  # in the decay, after chunks were replaced in the pool
            raise KeyboardInterrupt
        return genuine(*args)

    monkeypatch.setattr(train, "step_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        run_to_end(tmp_path / "b", tokenizer, teacher=teacher)
    monkeypatch.setattr(train, "step_loss", genuine)
    assert run_to_end(tmp_path / "b", tokenizer, resume=True) == undisturbed
    assert state.load(tmp_path / "b/stable.safetensors").progress.step == 8


@pytest.mark.slow
def test_two_runs_of_200_steps_are_the_same_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    torch.set_num_threads(1)
    first, second = (run_to_end(tmp_path / name, tokenizer, steps=200) for name in "ab")
    assert first == second
    assert state.load(tmp_path / "a/last.safetensors").progress.step == 200


def test_the_bundle_is_read_by_transformers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    run = state.start(Plan(), STREAM, SMALL)
    size = export(run, tokenizer, "seen: {{samples}}, {{sha256}}", tmp_path / "tiny")
    assert size == sum(file.stat().st_size for file in (tmp_path / "tiny").iterdir())
    assert (tmp_path / "tiny/README.md").read_text().startswith("seen: 0, ")
    model = CLIPModel.from_pretrained(tmp_path / "tiny").float()
    weight = run.towers.vision.projection.weight
    torch.testing.assert_close(model.visual_projection.weight, weight, atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="without a value"):
        export(run, tokenizer, "{{nothing}}", tmp_path / "tiny")


def test_a_run_goes_on_from_an_exported_folder(tmp_path: Path, tokenizer: Tokenizer) -> None:
    run = state.start(Plan(), STREAM, SMALL)
    exported = noisy()
    export(replace(run, towers=exported), tokenizer, "", tmp_path / "tiny")
    later = state.start_from(tmp_path / "tiny", Plan(), STREAM, SMALL)
    for name, tensor in clip_state(later.towers).items():
        assert torch.equal(tensor, clip_state(exported)[name].half().float()), name
    assert torch.equal(later.towers.probes[0].weight, run.towers.probes[0].weight)  # new, as in any other start
    assert (later.progress.step, later.optimiser.state) == (0, {})
    with pytest.raises(RuntimeError, match="size"):
        state.start_from(tmp_path / "tiny", Plan(), STREAM, replace(SMALL, width=64))


def test_attention_starts_near_and_contrasting() -> None:
    """Query-key products lean to the identity, value-output products away from it."""
    block = Block(32, 2, 48)
    with torch.no_grad():
        mimic_attention(block, torch.Generator().manual_seed(0))
    query, key, value = block.qkv.weight.chunk(3)
    assert (query.T @ key).diagonal().mean() > 0.5
    assert -0.6 < (value.T @ block.out.weight.T).diagonal().mean() < -0.2


def test_the_card_shows_trained_beside_untrained() -> None:
    rows = table([{"on": "brain", "right": 0.9, "patches8": 0.95}], [{"on": "brain", "right": 0.5}])
    assert rows.splitlines()[-1] == "| brain | right 0.9 (0.5), patches8 0.95 |"


def test_what_unrelated_texts_are_measured_with_was_never_learned() -> None:
    assert not {*EVERYDAY, *WORDS.read_text().split()} & set(measure.UNRELATED)


def test_separation_is_that_of_the_means_in_standard_deviations() -> None:
    """Whatever the length of the direction; across it there is none."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4000) % 2
    images = torch.randn(1, 4000, 3, generator=generator)
    images[0, :, 0] += 2 * labels
    known = neutral.health(images, labels[None])
    along, across = torch.tensor([[0.01, 0, 0], [5.0, 0, 0]]), torch.tensor([[0.0, 1, 0]])
    torch.testing.assert_close(neutral.separation(along, known), torch.full((2, 1), 4.0), atol=0.3, rtol=0)
    assert neutral.separation(across, known) < 0.02


def test_texts_come_to_say_nothing_of_health_where_no_state_is_named(tokenizer: Tokenizer) -> None:
    """The tower alone moves; what states say stays."""
    towers, generator = noisy(), torch.Generator().manual_seed(0)
    eyes = {name: p.clone() for name, p in towers.vision.named_parameters()}
    labels = (torch.arange(64) % 2).expand(2, -1)
    images = torch.randn(2, 64, 16, generator=generator)
    images[..., 0] += 2 * labels
    known = neutral.health(images, labels)
    words = [f"{one} and {other}" for one, other in zip(measure.UNRELATED[::2], measure.UNRELATED[1::2], strict=False)]
    states = ["healthy brain", "brain with lesion", "damaged chest X-ray film"]

    def look() -> tuple[float, torch.Tensor]:
        unrelated, said = (
            torch.nn.functional.normalize(towers.text(*encode(tokenizer, texts, 40)), dim=-1).detach()
            for texts in (words, states)
        )
        return float(neutral.separation(unrelated[1:] - unrelated[:-1], known).mean()), said

    (before, said), written = look(), ["a brain with a bright lesion", "normal chest X-ray film"]
    neutral.neutralise(towers, tokenizer, known, written, ("brain", "chest"), steps=60, rate=3e-3, log=1000)
    after, kept = look()
    assert after < before / 3
    assert (said * kept).sum(-1).min() > 0.9
    assert all(torch.equal(p, eyes[name]) for name, p in towers.vision.named_parameters())
