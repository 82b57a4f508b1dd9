"""Labelling replayed: what AUROC so many labels give, by which images are labelled next.

    python benchmarks/label_efficiency.py NAME=FOLDER:OBJECTIVE ... --on test --docs docs/serve.md

The labels of valid/ are hidden and revealed when a rule asks for them: that of the server (*what to label next*), the
most uncertain, and random order. After each batch a detector learns from what is known, with the backbone's recipe
and no masks: it is fitted with 8 labels and refitted from then on, as corrections are on the page. A seed leaves out an
eighth of the pool, draws the random order, and is that of the fit.

`--on phantoms` and `--on valid` are what a rule is chosen by: drawn images, and a third of the patients of valid/ held
out. `--on test` measures on test/, once. `--ridge` puts a ridge classifier of frozen tokens in the detector's place,
which takes seconds, so that many seeds tell rules apart. What is finished is kept in `--out` and not repeated.
"""

from __future__ import annotations

import argparse
import json
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch

from madclip import MadCLIP
from madclip.data.load import load_dataset
from madclip.data.samples import Sample
from madclip.files import new_file, write_between, write_whole
from madclip.fitting import Run
from madclip.head.scorer import pool
from madclip.metrics.image import auroc
from madclip.phantoms.dataset import write_phantoms
from madclip.report.figures import ANOMALOUS, FAINT, NORMAL, STYLE
from madclip.serve.suggest import uncertainty, what_next
from madclip.training.cache import TokenCache
from madclip.training.encode import backbone_pixels
from madclip.training.shots import read_shot
from sets import LabelledSet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Whole = npt.NDArray[np.intp]
    Scores = Callable[[Whole], Floats]

COUNTS = (8, 12, 16, 24, 32)
"""Labels after which AUROC is measured; with the first a detector is fitted, with more it is refitted."""
BATCH = 16
RIDGE = 0.1
"""Penalty of the ridge classifier, as a share of the features' mean square."""
RESAMPLES = 2000
RANDOM = "random order"
PHANTOMS = {
    "brain": "Brain",
    "fundus": "retinal fundus photograph",
    "histology": "histology",
    "liver": "liver CT",
    "oct": "retinal OCT",
    "ultrasound": "breast ultrasound",
}
"""What is drawn, and the objective."""


class Images(NamedTuple):
    """A set as rules and detectors see it.

    Attributes:
        name: Its name.
        detector: What is fitted, with its objective.
        samples: N images with their labels and without masks.
        streams: [N, T, prefix + G, d], tokens of the images as they are.
        pooled: [N, T x d], what rules compare.
        features: [N, 3 x T x d], mean, spread and highest of an image's patches: what the ridge classifier learns from.
    """

    name: str
    detector: MadCLIP
    samples: Sequence[Sample]
    streams: torch.Tensor
    pooled: Floats
    features: Floats

    @property
    def labels(self) -> npt.NDArray[np.int8]:
        """The truth, [N]."""
        return np.array([sample.label for sample in self.samples], np.int8)

    @property
    def tested(self) -> npt.NDArray[np.bool_]:
        """Which of them lie in test/, [N]."""
        return np.array([sample.split == "test" for sample in self.samples])


def encoded(one: LabelledSet, source: str, *, test: bool) -> Images:
    """The images of valid/, and those of test/ where they are asked for."""
    detector = MadCLIP(backbone=source, objective=one.objective)
    data, backbone, view = load_dataset(one.folder), detector.backbone, detector.recipe.view
    found = [*data.split("valid"), *(data.split("test") if test else ())]
    samples = [Sample(each.image, each.label, None, each.patient, each.split) for each in found]
    parts = []
    for start in range(0, len(samples), BATCH):
        pixels = torch.stack([read_shot(each, view).pixels for each in samples[start : start + BATCH]])
        with torch.inference_mode():
            parts.append(torch.stack(backbone.encode_image(backbone_pixels(backbone, view, pixels)), 1).cpu())
    streams = torch.cat(parts)
    patches = streams[:, :, backbone.spec.prefix_tokens :].float()
    features = torch.cat([patches.mean(2), patches.std(2), patches.amax(2)], -1).flatten(1)
    return Images(one.name, detector, samples, streams, pool(patches).double().numpy(), features.double().numpy())


def divided(images: Images, seed: int) -> tuple[Whole, Whole]:
    """The pool, and the images that are measured: test/, or where it is not there a third of the patients."""
    generator, tested = np.random.default_rng(seed), images.tested
    if tested.any():
        members = np.flatnonzero(~tested)
        return np.sort(generator.permutation(members)[: len(members) * 7 // 8]), np.flatnonzero(tested)
    groups = np.unique([sample.group or str(sample.image) for sample in images.samples], return_inverse=True)[1]
    ranks = generator.permutation(groups.max() + 1)[groups]
    held_out = ranks < np.sort(ranks)[len(ranks) // 3]
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


Learn: TypeAlias = "Callable[[Images, Whole, Whole, int], Scores]"
"""Learns, for a set, its pool, the images of it that have labels, and a seed; gives what scores any images."""


def by_detector(images: Images, _: Whole, members: Whole, seed: int, *, run: Run) -> Scores:
    """The detector, fitted or refitted; where no normal image is known, texts alone speak."""
    chosen, detector = [images.samples[i] for i in members], images.detector
    if not any(sample.label == 0 for sample in chosen):
        detector.fit(shots=0)
    elif len(members) <= COUNTS[0] or detector.provenance.learned_from != "both":
        detector.fit(chosen, shots=None, seed=seed, folds=0, run=run)
    else:
        detector.refit(chosen, seed=seed, run=run)
    state = detector.state
    first = 0 if state.head.keeps_prefix else detector.backbone.spec.prefix_tokens

    @torch.inference_mode()
    def scores(asked: Whole) -> Floats:
        parts = torch.from_numpy(asked).split(BATCH)
        return torch.cat([state.score(images.streams[part, :, first:])[0] for part in parts]).double().numpy()

    return scores


def by_ridge(images: Images, pool: Whole, members: Whole, _: int) -> Scores:
    """A ridge classifier of features as they vary in the pool."""
    known = images.features[pool]
    rows = (images.features - known.mean(0)) / (known.std(0) + 1e-6)
    labels = 2.0 * images.labels[members] - 1
    gram = rows[members] @ rows[members].T / rows.shape[1]
    weights = rows[members].T @ np.linalg.solve(gram + RIDGE * np.eye(len(members)), labels - labels.mean())
    return lambda asked: rows[asked] @ weights / rows.shape[1]


class Known(NamedTuple):
    """What a rule may look at: pooled tokens [N, d], labels [N] (-1 hidden), what the detector says [N], an order."""

    pooled: Floats
    labels: npt.NDArray[np.int8]
    chance: Floats
    order: Whole


def by_the_server(known: Known, count: int) -> list[int]:
    """What the page suggests."""
    return [one.place for one in what_next(known.pooled, known.labels, known.chance, count)]


def at_random(known: Known, count: int) -> list[int]:
    """The next of a random order."""
    return [int(i) for i in known.order if known.labels[i] < 0][:count]


def by_uncertainty(known: Known, count: int) -> list[int]:
    """Those nearest to the border of the classes; at random until there are both."""
    unsure = uncertainty(known.labels, known.chance)
    if np.isnan(unsure).all():
        return at_random(known, count)
    return [int(i) for i in np.argsort(-np.where(known.labels < 0, unsure, -np.inf), kind="stable")[:count]]


RULES: dict[str, Callable[[Known, int], list[int]]] = {
    "what to label next": by_the_server,
    "most uncertain": by_uncertainty,
    RANDOM: at_random,
}


def area(labels: npt.NDArray[np.int8], said: Floats) -> float:
    """AUROC of images of both classes."""
    value = auroc(labels.tolist(), said)
    assert value is not None
    return value


def replay(images: Images, rule: str, seed: int, learn: Learn) -> list[float]:
    """AUROC after each number of labels."""
    members, measured = divided(images, seed)
    truth, pooled = images.labels[members], images.pooled[members]
    labels, chance = np.full(len(members), -1, np.int8), np.full(len(members), np.nan)
    order = np.random.default_rng(seed).permutation(len(members))
    found = []
    for count in COUNTS:
        asked = RULES[rule](Known(pooled, labels, chance, order), count - int((labels >= 0).sum()))
        labels[asked] = truth[asked]
        scores = learn(images, members, members[labels >= 0], seed)
        if rule != RANDOM:
            chance = scores(members)
        found.append(area(images.labels[measured], scores(measured)))
    return found


Curves = dict[str, dict[str, list[list[float]]]]
"""AUROC of each set and rule: a list over COUNTS for each seed."""


def needed(curve: Floats, target: float) -> float:
    """Labels with which a curve over COUNTS first reaches a target, by a line between points; all where it does not."""
    above = np.flatnonzero(curve >= target)
    if not len(above):
        return COUNTS[-1]
    first = int(above[0])
    if first == 0:
        return COUNTS[0]
    return float(np.interp(target, curve[first - 1 : first + 1], COUNTS[first - 1 : first + 1]))


def share(curves: Curves, rule: str) -> float:
    """Labels needed for what random order reaches with 32, over 32: mean over sets, by mean curves of seeds."""
    found = []
    for rules in curves.values():
        target = float(np.mean(rules[RANDOM], 0)[-1])
        found.append(needed(np.mean(rules[rule], 0), target) / COUNTS[-1])
    return float(np.mean(found))


def gain(curves: Curves, rule: str) -> Floats:
    """AUROC of a rule minus that of random order at each number of labels, mean over seeds and sets."""
    found = [np.mean(rules[rule], 0) - np.mean(rules[RANDOM], 0) for rules in curves.values()]
    return np.asarray(np.mean(found, 0), np.float64)


def interval(curves: Curves, value: Callable[[Curves], Any]) -> tuple[Any, Any]:
    """95 % percentile interval: sets are drawn anew, and within each of them seeds, the same for all rules."""
    generator, names, drawn = np.random.default_rng(0), list(curves), []
    for _ in range(RESAMPLES):
        sample: Curves = {}
        for number, name in enumerate(generator.choice(names, len(names))):
            seeds = generator.integers(0, len(curves[name][RANDOM]), len(curves[name][RANDOM]))
            sample[str(number)] = {rule: [found[i] for i in seeds] for rule, found in curves[name].items()}
        drawn.append(value(sample))
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return low, high


def markdown(curves: Curves, picture: str, how: str) -> str:
    """What was measured, in a table and in words."""
    seeds = len(next(iter(curves.values()))[RANDOM])
    lines = [f"![AUROC against labels]({picture})", ""]
    lines += ["| set | order | " + " | ".join(f"{count} labels" for count in COUNTS) + " |"]
    lines += ["|---|---|" + "---|" * len(COUNTS)]
    for name, rules in curves.items():
        for rule, found in rules.items():
            pairs = zip(100 * np.mean(found, 0), 100 * np.std(found, 0), strict=True)
            lines.append(f"| {name} | {rule} | " + " | ".join(f"{mean:.1f} ± {sd:.1f}" for mean, sd in pairs) + " |")
    lines += ["", "| mean of sets | labels needed | " + " | ".join(f"{count} labels" for count in COUNTS) + " |"]
    lines += ["|---|---|" + "---|" * len(COUNTS)]
    for rule in RULES:
        low, high = interval(curves, partial(share, rule=rule))
        ends = interval(curves, partial(gain, rule=rule))
        points = zip(gain(curves, rule), *ends, strict=True)
        more = [f"{100 * x:+.1f} [{100 * a:+.1f}, {100 * b:+.1f}]" for x, a, b in points]
        cells = ["-"] * len(COUNTS) if rule == RANDOM else more
        lines.append(f"| {rule} | {share(curves, rule):.0%} [{low:.0%}, {high:.0%}] | " + " | ".join(cells) + " |")
    words = (
        f"Image AUROC in percent, mean and standard deviation over {seeds} seeds; below, minus that of random order. "
        f"Labels needed: with so many the mean curve first reaches what random order has with {COUNTS[-1]}, as a share "
        f"of these, mean over sets; {COUNTS[0] / COUNTS[-1]:.0%} at least, and 100% for a curve that stays below. "
        "Curves are not smooth, so that random order itself may need fewer. Brackets: 95 % intervals over sets and "
        f"seeds. {how}"
    )
    return "\n".join([*lines, "", words]) + "\n"


def figure(curves: Curves, path: Path) -> None:
    """A curve for each rule on each set, in one SVG on white."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE | {"svg.hashsalt": "labels", "svg.id": "figure-labels"}):
        whole = Figure(figsize=(3.4 * len(curves), 3.2), layout="constrained")
        FigureCanvasSVG(whole)
        for ax, (name, rules) in zip(whole.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
            for (rule, found), color in zip(rules.items(), (ANOMALOUS, NORMAL, FAINT), strict=True):
                mean, sd = 100 * np.mean(found, 0), 100 * np.std(found, 0)
                ax.plot(COUNTS, mean, "o-", color=color, markersize=4, label=rule)
                ax.fill_between(COUNTS, mean - sd, mean + sd, color=color, alpha=0.12, linewidth=0)
            ax.set(title=name, xlabel="labels", ylabel="image AUROC, %", xticks=COUNTS)
        ax.legend(loc="lower right")
        with new_file(path) as partial:
            whole.savefig(partial, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def measured(out: Path, seeds: int, sets: Mapping[str, Callable[[], Images]], learn: Learn) -> Curves:
    """All curves; those that are in `out` are not made again."""
    path = out / "curves.json"
    made: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(seeds):
        for name, images in sets.items():
            for rule in RULES:
                key = f"{name}, {rule}, seed {seed}"
                if key not in made:
                    made[key] = replay(images(), rule, seed, learn)
                    print(key, *(f"{value:.3f}" for value in made[key]), flush=True)
                    write_whole(path, json.dumps(made, indent=1))
    return {
        name: {rule: [made[f"{name}, {rule}, seed {seed}"] for seed in range(seeds)] for rule in RULES} for name in sets
    }


def drawn_sets(folder: Path) -> list[LabelledSet]:
    """Hard phantoms of a few kinds, 32 + 32 in valid/ and 40 + 40 in test/."""
    for name in PHANTOMS:
        if not (folder / name).exists():
            write_phantoms(folder / name, name, 40, 40, 3, 1.0, shots=32)
    return [LabelledSet(name, str(folder / name), objective) for name, objective in PHANTOMS.items()]


def main() -> None:
    """Parse, replay, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", type=LabelledSet.parse, metavar="NAME=FOLDER:OBJECTIVE")
    parser.add_argument("--on", choices=("phantoms", "valid", "test"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder; a new one after a rule was changed")
    parser.add_argument("--ridge", action="store_true", help="a ridge classifier in the detector's place")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument(
        "--docs", type=Path, help="page with the marks <!-- labels -->, or <!-- labels-ridge -->, and <!-- end ... -->"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    sets = drawn_sets(given.out / "phantoms") if given.on == "phantoms" else given.sets
    if not sets:
        parser.error(f"--on {given.on} needs sets")
    learn: Learn = by_ridge if given.ridge else partial(by_detector, run=Run(TokenCache(given.out / "tokens")))
    images = {one.name: cache(partial(encoded, one, given.backbone, test=given.on != "valid")) for one in sets}
    curves = measured(given.out, given.seeds, images, learn)
    name = "labels-ridge" if given.ridge else "labels"
    recipe = next(iter(images.values()))().detector.recipe.name
    learner = "ridge classifier of its tokens" if given.ridge else f"recipe `{recipe}`"
    how = f"Backbone `{given.backbone}`, {learner}."
    picture = (given.docs or given.out / "page").with_name(f"{name}.svg")
    text = markdown(curves, picture.name, how)
    print(text)
    figure(curves, picture)
    if given.docs:
        write_between(given.docs, name, text)


if __name__ == "__main__":
    main()
