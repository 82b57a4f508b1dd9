"""The tables of an experiment; published numbers have a column of their own."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.benchmark.experiments import ABLATIONS, Cell, tasks_of
from madclip.benchmark.published import protocol, published, published_rows
from madclip.benchmark.render import DAGGER, Table
from madclip.metrics.compare import mean_interval
from madclip.metrics.intervals import resamples, weighted_auroc
from madclip.metrics.scored import Scored
from madclip.recipe import PRESETS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

TASK_METRIC = {"AC": "image_auroc", "AS": "pixel_auroc"}
PUBLISHED_AS = {
    "madclip": "MadCLIP",
    "fused": "MadCLIP",
    "paper": "MadCLIP",
    "released": "MadCLIP",
    "patchcore": "PatchCore",
    "april-gan": "APRIL-GAN",
    "mvfa": "MVFA",
    "mediclip": "MediCLIP",
    "cflow": "CFLOW-AD",
    "rd4ad": "RD4AD",
    "mkd": "MKD",
    "dra": "DRA",
    "bgad": "BGAD",
}
"""Names of our methods in the paper's tables."""

COUNTED = {"normal-only": "{} normal images alone", "zero-shot": "texts alone"}
"""What is learned from in experiments that are not about shots of each class."""
STATED = 10
"""False-positive rate in percent that thresholds of normal images alone aim at."""
JOINT = (
    "`joint` is one detector of all sets that is told what an image shows, `routed` is not told, `without` did not "
    "learn from the set that is measured. Nobody has published such a mean, of one detector that learned from a few "
    "images of several modalities, that we found."
)
NOT_RUN = "not run"
STAR = "*"
PERCENT = "AUROC in percent, mean over draws of shots with Student's 95 % interval over the draws, cut to 0 to 100."
NOT_DRAWN = "AUROC in percent; nothing is drawn, so there is no interval over draws."
OWN_SPLIT = f"{STAR} own split: no rule was published, so images were split here, by patient where patients are known."
TEST_BEST = f"{DAGGER} the epoch was selected on the test images, as was published: optimistic."


@dataclass(frozen=True)
class Run:
    """Everything that tables are made of.

    Attributes:
        experiment: Its name.
        cells: All of it.
        found: Those that are finished, from `read_cells`.
        backbone: In a word, for the heads of columns.
        test_best: Whether MadCLIP's epochs were selected on test images; every number of theirs is marked.
        own_splits: Sets that were split here.
    """

    experiment: str
    cells: Sequence[Cell]
    found: dict[Cell, dict[str, Any]]
    backbone: str = "tiny"
    test_best: bool = False
    own_splits: Collection[str] = ()

    def auroc(self, name: str, task: str, shots: int, method: str) -> dict[int, float]:
        """AUROC in percent of each draw."""
        metric = TASK_METRIC[task]
        return {
            cell.seed: 100 * facts["metrics"][metric][0]
            for cell, facts in self.found.items()
            if (cell.set, cell.shots, cell.method) == (name, shots, method) and facts["metrics"][metric][0] is not None
        }

    def average(self, names: Sequence[str], task: str, shots: int, method: str) -> dict[int, float]:
        """Mean over sets of each draw that all of them have."""
        each = [self.auroc(name, task, shots, method) for name in names if task in tasks_of(name)]
        seeds = set.intersection(*(set(draws) for draws in each)) if each else set()
        return {seed: fmean(draws[seed] for draws in each) for seed in sorted(seeds)}

    def mark(self, *methods: str) -> str:
        """Behind a number of these methods."""
        return DAGGER if self.test_best and any(method.partition("-")[0] in PRESETS for method in methods) else ""

    def title(self, name: str) -> str:
        """A set, and whether its split is our own."""
        return name + (STAR if any(part in self.own_splits for part in name.split("->")) else "")

    @property
    def marks(self) -> tuple[str, ...]:
        """What the marks mean."""
        own = any(STAR in self.title(cell.set) for cell in self.cells)
        return (OWN_SPLIT,) * own + (TEST_BEST,) * self.test_best


def tables_of(run: Run, *, notes: Sequence[str] = ()) -> list[Table]:
    """All tables of an experiment; cells that were not run are shown as such.

    Args:
        run: The experiment.
        notes: Shown below the first table: with which backbone, on what machine.
    """
    if run.experiment == "ablations":
        made = _ablations(run)
    elif run.experiment in COUNTED:
        counts = sorted({cell.shots for cell in run.cells})
        paired = [table for count in dict.fromkeys((counts[-1], counts[0])) for table in _paired(run, count)]
        made = [*_by_shots(run), *paired, *_false_positives(run), _elsewhere(run)]
    elif run.experiment == "joint":
        made = [_means(run), *_by_shots(run), *_paired(run), _routing(run)]
    elif run.experiment == "real":
        made = [*_by_shots(run), *_paired(run)]
    else:
        made = [_beside_published(run), *_paired(run)]
    first, *rest = made
    return [Table(first.title, first.head, first.rows, (*first.notes, *run.marks, *notes)), *rest]


def _beside_published(run: Run) -> Table:
    rows = []
    sets = list(dict.fromkeys(cell.set for cell in run.cells))
    for shots, method in dict.fromkeys((cell.shots, cell.method) for cell in run.cells):
        for name in (*sets, "Average"):
            for task in ("AC", "AS") if name == "Average" and "->" not in sets[0] else tasks_of(name):
                draws = (
                    run.average(sets, task, shots, method)
                    if name == "Average"
                    else run.auroc(name, task, shots, method)
                )
                called = PUBLISHED_AS.get(method, method)
                theirs = published(run.experiment, name, called, shots, task)  # type: ignore[arg-type]
                difference = "-"
                if theirs is not None and draws:
                    difference = mean_of_draws([value - theirs for value in draws.values()], "+") + run.mark(method)
                shown = "-" if theirs is None else f"{theirs:.2f}"
                ours = mean_of_draws(draws.values()) + run.mark(method) if draws else NOT_RUN
                rows.append((method, str(shots), run.title(name), task, ours, shown, difference))
    ours = f"ours, {run.backbone}"
    head = ("method", "shots", "set", "task", ours, "published, ViT-L/14", "ours minus published")
    notes = (PERCENT, "Published numbers come without an interval: that of the difference is of our draws alone.")
    return Table(f"{run.experiment}: ours and the published numbers", head, tuple(rows), notes)


def _by_shots(run: Run) -> list[Table]:
    made = []
    shots = sorted({cell.shots for cell in run.cells})
    methods = list(dict.fromkeys(cell.method for cell in run.cells))
    head = (f"method, on {run.backbone}", *(COUNTED.get(run.experiment, "{} shots").format(n) for n in shots))
    for name in dict.fromkeys(cell.set for cell in run.cells):
        for task, what in (("AC", "images"), ("AS", "pixels")):
            values = {(m, count): run.auroc(name, task, count, m) for m in methods for count in shots}
            if task not in tasks_of(name) or (task == "AS" and not any(values.values())):
                continue
            rows = tuple(
                (
                    m,
                    *(
                        mean_of_draws(v.values()) + run.mark(m) if (v := values[m, count]) else NOT_RUN
                        for count in shots
                    ),
                )
                for m in methods
            )
            note = NOT_DRAWN if run.experiment == "zero-shot" else PERCENT
            made.append(Table(f"{run.title(name)}, {what}", head, rows, (note,)))
    return made


def _paired(run: Run, shots: int | None = None) -> list[Table]:
    """Every method against the first of MadCLIP's presets on the same shots and test images, by default at the most."""
    methods = list(dict.fromkeys(cell.method for cell in run.cells))
    reference = next((preset for preset in PRESETS if preset in methods), None)
    most = max(cell.shots for cell in run.cells) if shots is None else shots
    rows = []
    for name in dict.fromkeys(cell.set for cell in run.cells):
        for method in methods:
            pairs = [] if reference in (None, method) else _pairs(run.found, name, most, str(reference), method)
            if not pairs:
                continue
            draws, resampled = mean_difference(pairs)
            mark = run.mark(str(reference), method)
            rows.append((run.title(name), method, mean_of_draws(draws, "+") + mark, _interval(*resampled) + mark))
    if not rows:
        return []
    head = ("set", "method", f"{reference} minus it, over draws of shots", "over test images")
    note = (
        f"Image AUROC in points, {COUNTED.get(run.experiment, '{} shots of each class').format(most)}, on "
        f"{run.backbone}: same shots, same test images, mean over draws. The first interval is Student's over draws of "
        "shots; the second is the paired bootstrap over test images (patients where they are known) with the shots as "
        "they were drawn."
    )
    title = f"{reference} against each method"
    return [Table(title if shots is None else f"{title}, {shots} images", head, tuple(rows), (note,))]


def _false_positives(run: Run) -> list[Table]:
    """How many normal test images thresholds call anomalous that normal images alone gave."""
    counts = sorted({cell.shots for cell in run.cells})
    names = list(dict.fromkeys(cell.set for cell in run.cells))
    rows = []
    for method in dict.fromkeys(cell.method for cell in run.cells):
        rates = {
            (name, count): [
                100 * (1 - facts["metrics"]["specificity"][0])
                for cell, facts in run.found.items()
                if (cell.set, cell.shots, cell.method) == (name, count, method)
                and facts["metrics"].get("specificity", [None])[0] is not None
            ]
            for name in names
            for count in counts
        }
        for count in counts:
            each = [rates[name, count] for name in names]
            if all(each):
                mean = fmean(fmean(values) for values in each)
                shown = (f"{mean_of_draws(values)}; {len(values)} draws" for values in each)
                rows.append((method, str(count), *shown, f"{mean:.1f}"))
    if not rows:
        return []
    head = (f"method, on {run.backbone}", "normal images", *(run.title(name) for name in names), "mean of sets")
    note = (
        f"Normal test images that are called anomalous, in percent, where {STATED} were stated: mean over draws with "
        "Student's 95 % interval. What 16 images can promise is 1 in 17, that is 5.9: the next, 2 in 17, is above 10."
    )
    return [Table("Realised false-positive rate", head, tuple(rows), (note,))]


def _means(run: Run) -> Table:
    """One detector for all sets beside one for each, in the mean over sets."""
    sets = list(dict.fromkeys(cell.set for cell in run.cells))
    rows = []
    for shots, method in dict.fromkeys((cell.shots, cell.method) for cell in run.cells):
        single = method.partition("-")[0]
        row = [method, str(shots)]
        for task in ("AC", "AS"):
            draws, alone = (run.average(sets, task, shots, one) for one in (method, single))
            more = [draws[seed] - alone[seed] for seed in draws if seed in alone]
            row.append(mean_of_draws(draws.values()) if draws else NOT_RUN)
            row.append(mean_of_draws(more, "+") if more and method != single else "-")
        rows.append(tuple(row))
    head = (f"method, on {run.backbone}", "shots", "images", "minus single", "pixels", "minus single")
    return Table("Mean of the sets", head, tuple(rows), (PERCENT, JOINT))


def _routing(run: Run) -> Table:
    """What a joint detector takes images for, and whether it knows what it did not learn."""
    preset = next(iter(run.cells)).method.partition("-")[0]
    rows = []
    for name in dict.fromkeys(cell.set for cell in run.cells):
        shown = [run.title(name)]
        for how, metric in (("routed", "routed"), ("routed", "unfamiliar"), ("without", "unfamiliar")):
            cells = (c for c in run.found if (c.set, c.method) == (name, f"{preset}-{how}"))
            draws = [100 * run.found[cell]["metrics"][metric][0] for cell in sorted(cells)]
            shown.append(mean_of_draws(draws) if draws else NOT_RUN)
        rows.append(tuple(shown))
    head = ("set", "taken for the right modality", "unfamiliar", "unfamiliar where it was left out")
    return Table(f"{preset}: what test images are taken for", head, tuple(rows), ("Percent of the set's test images.",))


def _elsewhere(run: Run) -> Table:
    """Numbers that others published for the mode, and how they came about."""
    rows = published_rows(run.experiment)  # type: ignore[arg-type]
    kinds = {(name, task): None for _, name, task, _ in rows}
    methods = dict.fromkeys(method for method, *_ in rows)
    of = {(method, name, task): f"{value:.1f} {DAGGER}" for method, name, task, value in rows}
    shown = tuple((m, *(of.get((m, *kind), "-") for kind in kinds)) for m in methods)
    head = ("published, ViT-L/14", *(f"{name} {task}" for name, task in kinds))
    return Table(f"{run.experiment}, published", head, shown, (f"{DAGGER} {protocol(run.experiment)}.",))  # type: ignore[arg-type]


def _pairs(
    found: dict[Cell, dict[str, Any]], name: str, shots: int, first: str, second: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Draws of which both methods scored the same test images."""
    both = [
        (found.get(Cell(name, shots, c.seed, first)), f)
        for c, f in sorted(found.items())
        if (c.set, c.shots, c.method) == (name, shots, second)
    ]
    pairs = [(one, other) for one, other in both if one is not None and one["images"] == other["images"]]
    return [pair for pair in pairs if pair[0]["images"] == pairs[0][0]["images"] and len({*pair[0]["labels"]}) == 2]


def mean_difference(
    pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], *, repetitions: int = 2000, level: float = 0.95
) -> tuple[list[float], tuple[float, float]]:
    """Image AUROC of the first minus the second of each pair, in points, and the interval of their mean.

    Args:
        pairs: Cells of the same test images, one pair a draw of shots.
        repetitions: Bootstrap replicates; each resamples the images (patients where known) of all draws alike.
        level: Coverage that the interval aims at.
    """
    labels, groups = pairs[0][0]["labels"], pairs[0][0]["groups"]
    images = [(Scored.of(labels, one["scores"]), Scored.of(labels, other["scores"])) for one, other in pairs]

    def difference(weights: Any) -> Any:
        return [100 * (weighted_auroc(one, weights) - weighted_auroc(other, weights)) for one, other in images]

    draws = [float(value[0]) for value in difference(np.ones((1, len(labels))))]
    means = [np.mean(difference(weights), 0) for weights in resamples(labels, groups, repetitions, 0)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return draws, (float(low), float(high))


def _ablations(run: Run) -> list[Table]:
    """Drop of the mean over sets when one switch is changed, from draw to draw; and that of each set."""
    sets = list(dict.fromkeys(cell.set for cell in run.cells))
    shots = min(cell.shots for cell in run.cells)
    presets = list(dict.fromkeys(cell.method.partition("-")[0] for cell in run.cells))
    rows, each = [], []
    for preset in presets:
        for letter, (what, _) in ABLATIONS.items():
            for task in ("AC", "AS"):
                drops = {name: _drops(run, [name], task, shots, preset, letter) for name in sets}
                ran = [name for name in sets if drops[name]]
                mean = _drops(run, ran, task, shots, preset, letter)
                theirs = published("ablations", "Average", letter, None, task)
                shown = "-" if theirs is None else f"{theirs:+.2f}"
                mark = run.mark(preset)
                rows.append(
                    (
                        preset,
                        letter,
                        what,
                        task,
                        mean_of_draws(mean, "+") + mark if mean else NOT_RUN,
                        str(len(ran)),
                        shown,
                    )
                )
                cells = (mean_of_draws(drops[name], "+") + mark if drops[name] else "-" for name in sets)
                each.append((preset, letter, what, task, *cells))
    head = ("recipe", "letter", "change", "task", f"drop, ours, {run.backbone}", "sets", "drop, published, ViT-L/14")
    points = (
        "Points of AUROC lost by the change, mean over draws of shots, with Student's 95 % interval over the draws."
    )
    where = f"Ours: {shots} shots; sets {', '.join(map(run.title, sets))}. Published: mean of the paper's six sets."
    of_each = (*head[:4], *(f"{run.title(name)}, {run.backbone}" for name in sets))
    return [
        Table("Ablations", head, tuple(rows), (points, where)),
        Table("Ablations, each set", of_each, tuple(each), (points, "- has no masks, or was not run.")),
    ]


def _drops(run: Run, names: Sequence[str], task: str, shots: int, preset: str, letter: str) -> list[float]:
    plain = run.average(names, task, shots, preset)
    changed = run.average(names, task, shots, f"{preset}-{letter}")
    return [plain[seed] - changed[seed] for seed in plain if seed in changed]


def mean_of_draws(draws: Collection[float], sign: str = "") -> str:
    """Mean and Student's 95 % interval in a cell; without a sign it is of an AUROC in percent, cut to 0 to 100."""
    estimate = mean_interval(list(draws), bounds=None if sign else (0, 100))
    text = f"{estimate.value:{sign}.1f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} {_interval(estimate.low, estimate.high, sign)}"


def _interval(low: float, high: float, sign: str = "+") -> str:
    return f"[{low:{sign}.1f}, {high:{sign}.1f}]"
