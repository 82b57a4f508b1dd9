"""Pre-train the bundled backbone: python -m tools.pretrain.train --out DIR (see README.md beside this file).

The learning rate warms up, stays, and decays to nothing at the end of --samples, or as soon as the process gets
SIGUSR1. The state before the decay is kept as stable.safetensors, from which a later run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tools.pretrain import losses, state
from tools.pretrain.data import Batch, Pool, Stream, derived_seed
from tools.pretrain.model import TowerConfig, Towers
from tools.pretrain.state import Plan, Progress, Run
from tools.pretrain.teacher import Teacher
from tools.pretrain.texts import States, draw_states, encode
from tools.pretrain.tokenizer import learn_tokenizer

from madclip.phantoms import MODALITIES

CAPTION_WEIGHT, STATE_WEIGHT, TEXT_WEIGHT, DENSE_WEIGHT = 0.5, 0.25, 0.5, (1.0, 1.0, 1.0, 2.0)
"""Of images against captions and states, of patches against texts, and of the dense losses at each tap."""
TEACHER_WEIGHT = 4.0
"""Of the distillation at each tap: after 100 steps its gradient is nearly as long as that of all other losses."""
RAMP = 500
"""Steps until texts count fully: texts that mean nothing yet would collapse the vision tower onto one point."""


class Asked:
    """What signals have asked for since the last step."""

    def __init__(self) -> None:
        self.decay = False
        self.stop = False
        signal.signal(signal.SIGUSR1, self._set_decay)
        signal.signal(signal.SIGTERM, self._set_stop)
        signal.signal(signal.SIGINT, self._set_stop)

    def _set_decay(self, *_: object) -> None:
        self.decay = True

    def _set_stop(self, *_: object) -> None:
        self.stop = True


def schedule(plan: Plan, progress: Progress) -> tuple[float, bool, bool]:
    """Learning rate of the next step, whether it sees all patches, and whether the run is over."""
    warm = min(1.0, (progress.step + 1) / plan.warmup)
    if progress.decay_from is None:
        return plan.rate * warm, False, progress.samples >= plan.samples
    done = (progress.samples - progress.decay_from) / max(plan.decay, 1)
    return plan.rate * warm * max(0.0, 1 - done), done >= 1 - plan.full, done >= 1


def step_loss(
    towers: Towers,
    batch: Batch,
    states: States,
    tokenizer: Tokenizer,
    ramp: float = 1.0,
    teacher: Teacher | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of one step and what is logged of it."""
    config = towers.config
    weight = towers.vision.patch.weight
    device = weight.device
    streams = towers.vision(batch.patches.to(device, weight.dtype), batch.kept.to(device))
    images = F.normalize(towers.vision.embed(streams[-1][:, 0]).float(), dim=-1)
    ids, end = encode(tokenizer, batch.captions, config.text_length)
    captions = F.normalize(towers.text(ids.to(device), end.to(device)).float(), dim=-1)
    ids, end = encode(tokenizer, states.texts, config.text_length - 8)
    contexts = None if states.contexts is None else states.contexts.to(device)
    pairs = F.normalize(towers.text(ids.to(device), end.to(device), contexts).float(), dim=-1)

    match, known = (value.to(device) for value in caption_match(batch))
    similar = images @ captions.T
    logits = towers.log_scale.exp() * similar + towers.bias
    caption = losses.siglip(logits, match, known)
    bias = towers.state_bias[states.generic.to(device).long()]
    logits = towers.state_log_scale.exp() * (images @ pairs.T) + bias
    whole = losses.siglip(logits, states.match.to(device), torch.ones_like(logits))

    patches = towers.dense(streams)
    half = states.pairs
    pair = states.pair.to(device)
    # Of unit length: two texts are close at first, and patches would wait for them to part.
    direction = F.normalize(pairs[half : 2 * half] - pairs[:half], dim=-1)[pair]
    scores = torch.einsum("tbke,be->tbk", patches, direction)
    scores = towers.dense_log_scale.exp()[:, None, None] * scores + towers.dense_bias[:, None, None]
    areas = batch.areas.to(device)
    dense = losses.dense(scores, areas)
    probed = losses.dense(towers.probe(streams), areas)
    each = dense.new_tensor(DENSE_WEIGHT)
    texts = CAPTION_WEIGHT * caption + STATE_WEIGHT * whole + TEXT_WEIGHT * (dense * each).sum()
    total = (probed * each).sum() + ramp * texts
    found = match[torch.arange(len(match), device=device), similar.argmax(dim=1)]
    logged = {"caption": caption, "state": whole, "retrieved": found.float().mean()}
    logged |= {f"probe{tap}": value for tap, value in zip(config.taps, probed, strict=True)}
    logged |= {f"dense{tap}": value for tap, value in zip(config.taps, dense, strict=True)}
    if teacher is not None:
        missed = losses.distillation(towers.imitate(streams), teacher.tokens(batch))
        total = total + TEACHER_WEIGHT * missed.sum()
        logged |= {f"teacher{tap}": value for tap, value in zip(config.taps, missed, strict=True)}
    return total, {name: value.detach() for name, value in logged.items()}


def caption_match(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Which captions are true of which images, and where that is known: not between two normals of a modality."""
    texts = [caption.lower().rstrip(".") for caption in batch.captions]
    number = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    which = torch.tensor([number[text] for text in texts])
    match = which[:, None] == which
    fine = (batch.labels[:, None] == 0) & (batch.labels == 0) & (batch.modality[:, None] == batch.modality)
    return match, (match | ~fine).float()


def train(run: Run, tokenizer: Tokenizer, out: Path, *, device: str, workers: int, every: float, log: int) -> None:
    """Run until the plan is done or a signal stops it; checkpoints in `out` every `every` seconds."""
    asked, progress, plan = Asked(), run.progress, run.plan
    config, batch_size = run.towers.config, run.stream.share * len(run.stream.modalities)
    masters = list(run.towers.parameters())
    working = run.towers.working_copy(getattr(torch, plan.dtype), torch.device(device))
    copies = list(working.parameters())
    teacher = Teacher(plan.teacher, config, device, plan.dtype) if plan.teacher else None
    pool = Pool(run.stream, workers=workers, step=progress.step)
    saved = began = time.monotonic()
    means: dict[str, float] = {}
    waited = 0.0
    try:
        while True:
            now = time.monotonic()
            last = progress.samples >= plan.samples - plan.decay
            if progress.decay_from is None and (asked.decay or last):
                state.save(run, out / "stable.safetensors")
                progress.decay_from = progress.samples
            rate, whole, over = schedule(plan, progress)
            if over or asked.stop or now - saved > every:
                state.save(run, out / "last.safetensors")
                saved = now
                if over or asked.stop:
                    return
            grid = config.grid**2
            batch = pool.batch(progress.step, config, grid if whole else round(plan.keep * grid))
            waited += time.monotonic() - now
            random = torch.Generator().manual_seed(derived_seed("texts", run.stream.seed, progress.step))
            states = draw_states(batch, run.stream.modalities, config.text_width, random)
            ramp = min(1.0, (progress.step + 1) / RAMP)
            loss, logged = step_loss(working, batch, states, tokenizer, ramp, teacher)
            loss.backward()
            _update(run.optimiser, masters, copies, rate)
            progress.step += 1
            progress.samples += batch_size
            progress.seconds += time.monotonic() - now
            for name, value in logged.items():
                means[name] = means.get(name, 0.0) + float(value) / log
            if progress.step % log == 0:
                took = time.monotonic() - began
                line = {"step": progress.step, "samples": progress.samples, "rate": rate, "whole": whole}
                line |= {"scale": run.towers.log_scale.exp().item(), "bias": run.towers.bias.item()}
                line |= {"per_second": log * batch_size / took, "waited": waited / took}
                _write(out / "log.jsonl", {k: _short(v) for k, v in (line | means).items()})
                means, waited, began = {}, 0.0, time.monotonic()
    finally:
        pool.close()


def _update(optimiser: torch.optim.AdamW, masters: list[Any], copies: list[Any], rate: float) -> None:
    for master, copied in zip(masters, copies, strict=True):
        master.grad = torch.zeros_like(master) if copied.grad is None else copied.grad.to(master)
        copied.grad = None
    torch.nn.utils.clip_grad_norm_(masters, 1.0)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]
    optimiser.step()
    with torch.no_grad():
        for master, copied in zip(masters, copies, strict=True):
            copied.copy_(master)


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.4g}")


def _write(path: Path, line: dict[str, object]) -> None:
    text = json.dumps(line)
    with path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    print(text, flush=True)


def main() -> None:
    """Start a run, or go on with the one in --out, or continue a finished run's stable phase with --from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; resumed where it has a checkpoint")
    help_from = "stable.safetensors of an earlier run, or an exported folder, to go on from"
    parser.add_argument("--from", dest="origin", type=Path, help=help_from)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hold-out", choices=MODALITIES, action="append", default=[], help="a modality not to draw")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw phantoms")
    parser.add_argument("--threads", type=int, default=2, help="of the training itself")
    parser.add_argument("--every", type=float, default=120.0, help="seconds between checkpoints")
    parser.add_argument("--log", type=int, default=25, help="steps between lines of the log")
    parser.add_argument("--reuse", type=int, default=Stream.reuse, help="times that an image is read on average")
    parser.add_argument("--hardest", type=float, default=Stream.hardest, help="difficulty is drawn from 0 to this")
    for field in dataclasses.fields(Plan):
        kind = {"int": int, "float": float, "str": str}[str(field.type)]
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help=f"default {field.default}")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    chosen = {f.name: v for f in dataclasses.fields(Plan) if (v := getattr(given, f.name)) is not None}
    modalities = tuple(m for m in MODALITIES if m not in given.hold_out)
    stream = Stream(seed=given.seed, modalities=modalities, reuse=given.reuse, hardest=given.hardest)
    config = TowerConfig(taught=Teacher(given.teacher, TowerConfig()).width if given.teacher else 0)
    last = given.out / "last.safetensors"
    path = given.out / "tokenizer.json"
    if not last.exists() and given.origin and given.origin.is_dir():
        run = state.start_from(given.origin, Plan(**chosen), stream, config)
        path.write_bytes((given.origin / "tokenizer.json").read_bytes())
    elif last.exists() or given.origin:
        run = state.load(last if last.exists() else given.origin)
        if given.teacher not in (None, run.plan.teacher):
            parser.error("--teacher: a run keeps the one it began with; start another from an exported folder")
        run = dataclasses.replace(run, plan=dataclasses.replace(run.plan, **chosen))
        if not last.exists():
            run = dataclasses.replace(run, stream=stream)
    else:
        run = state.start(Plan(**chosen), stream, config)
    if not path.exists():
        learn_tokenizer(run.towers.config.vocabulary).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    facts = {"parameters": sum(p.numel() for p in run.towers.parameters()), "plan": dataclasses.asdict(run.plan)}
    _write(given.out / "log.jsonl", facts | {"stream": dataclasses.asdict(run.stream)})
    train(run, tokenizer, given.out, device=given.device, workers=given.workers, every=given.every, log=given.log)


if __name__ == "__main__":
    main()
