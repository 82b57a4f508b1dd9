"""Detectors, an untrained backbone and trivial floors on labelled data sets; writes docs/results.md.

    python benchmarks/real_sets.py NAME=FOLDER:OBJECTIVE ... --out RUNS --seeds 3 --docs docs/results.md \
        [--also "tiny, seed 1=FOLDER"]

Every data set is in a layout that `madclip data check` knows, with valid/ for the shots and test/ for evaluation. Runs
that are finished are not repeated. The untrained backbone has the shape of `tiny` and random weights; --also adds
weights of another run of the pre-training.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from floors import centre_map, intensity_map, logistic_scores
from madclip import MadCLIP
from madclip.backbones.sources import TINY
from madclip.data.geometry import fit_mask
from madclip.data.load import load_dataset
from madclip.data.readers import read_mask
from madclip.data.shots import draw_shots
from madclip.evaluation.repeat import repeat
from madclip.files import write_between
from madclip.metrics.compare import mean_interval, paired_bootstrap, paired_delong
from madclip.metrics.image import auroc
from madclip.metrics.pixel import PixelHistogram
from madclip.metrics.scored import Scored
from madclip.recipe import View
from sets import LabelledSet

if TYPE_CHECKING:
    from madclip.data.samples import Dataset

SOURCES = {
    "BrainLGG": "FLAIR slices of low-grade glioma: LGG Segmentation Dataset (Buda et al. 2019; TCIA TCGA-LGG)",
    "ChestXray": "children, normal or pneumonia: Kermany et al. 2018; an easy set, split by image",
    "FundusIDRiD": "diabetic retinopathy: IDRiD (Porwal, Pachade, Kokare 2018), shrunk to 288 pixels",
}


def untrained(folder: Path) -> Path:
    """A backbone folder like `tiny`'s with seeded random weights."""
    from transformers import CLIPConfig, CLIPModel

    if not folder.exists():
        torch.manual_seed(0)
        CLIPModel(CLIPConfig.from_pretrained(TINY)).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
            (folder / name).write_bytes((TINY / name).read_bytes())
    return folder


def floor_rows(data: Dataset, shots: int, seeds: list[int]) -> dict[str, dict[str, list[float | None]]]:
    """Image and pixel AUROC of what needs no learning, or almost none, per draw of shots."""
    test = data.test_pool
    labels = [sample.label for sample in test]
    found: dict[str, dict[str, list[float | None]]] = {"logistic regression on 16 x 16 pixels": {"image_auroc": []}}
    for seed in seeds:
        scores = logistic_scores(draw_shots(data.shot_pool, shots, seed), test)
        found["logistic regression on 16 x 16 pixels"]["image_auroc"].append(auroc(labels, scores))
    for name, draw in (("blurred intensity", intensity_map), ("centre prior", centre_map)):
        maps = [draw(sample) for sample in test]
        found[name] = {"image_auroc": [auroc(labels, [one.mean() for one in maps])] * len(seeds)}
        if data.has_masks:
            pixels = PixelHistogram()
            for sample, one in zip(test, maps, strict=True):
                mask = None if sample.mask is None else fit_mask(read_mask(sample.mask), View(one.shape[0])).numpy()
                pixels.update(one, mask)
            found[name]["pixel_auroc"] = [pixels.auroc().value] * len(seeds)
    return found


def compare(first: dict[str, Any], second: dict[str, Any]) -> tuple[str, str]:
    """Image AUROC of one run minus another's on the same images: paired DeLong, paired bootstrap."""
    by_name = {row["name"]: row for row in second["images"]}
    rows = first["images"]
    one = Scored.of([row["label"] for row in rows], [row["score"] for row in rows])
    other = one.rescored([by_name[row["name"]]["score"] for row in rows])
    out = []
    for difference in (paired_delong(one, other), paired_bootstrap(one, other)):
        p = "" if difference.p is None else f", p = {difference.p:.3f}"
        out.append(f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]{p}")
    return out[0], out[1]


def cell(values: list[float | None]) -> str:
    """Mean over draws with its interval, and each draw."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    estimate = mean_interval(known)
    if len(set(known)) == 1:
        return f"{known[0]:.3f}"
    return f"{estimate.value:.3f} ({', '.join(f'{value:.3f}' for value in known)})"


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=LabelledSet.parse, metavar="NAME=FOLDER:OBJECTIVE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", default="madclip")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=BACKBONE")
    parser.add_argument("--folds", type=int, default=4, help="0: no calibration, a quarter of the time")
    parser.add_argument("--docs", type=Path, help="page to write between its marks `real sets`")
    given = parser.parse_args()
    seeds = list(range(given.seeds))
    others = dict(text.split("=", 1) for text in given.also)
    backbones = {"tiny": "tiny"} | others | {"untrained": str(untrained(given.out / "untrained-backbone"))}
    lines = []
    for name, folder, objective in given.sets:
        data = load_dataset(folder)
        runs: dict[str, list[dict[str, Any]]] = {}
        for kind, source in backbones.items():
            where = given.out / f"{name}-{kind}-{given.recipe}-{given.shots}"
            repeat(
                MadCLIP(given.recipe, backbone=source, objective=objective),
                data,
                where,
                shots=given.shots,
                seeds=seeds,
                folds=given.folds,
            )
            runs[kind] = [json.loads((where / f"seed-{seed}" / "evaluation.json").read_text()) for seed in seeds]
        lines += [f"### {name}", "", f"{SOURCES.get(name, name)}. Objective: {objective}.", ""]
        lines += [
            "| | image AUROC | pixel AUROC | AUPRO | Dice | sensitivity | specificity |",
            "|---|---|---|---|---|---|---|",
        ]
        keys = ("image_auroc", "pixel_auroc", "aupro", "dice", "sensitivity", "specificity")
        for kind, results in runs.items():
            lines.append(f"| {kind} | " + " | ".join(cell([run[key] for run in results]) for key in keys) + " |")
        for floor, values in floor_rows(data, given.shots, seeds).items():
            lines.append(f"| {floor} | " + " | ".join(cell(values.get(key, [])) for key in keys) + " |")
        lines += ["", "Image AUROC minus that of untrained, same images and shots:", ""]
        lines += ["| backbone | seed of the shots | paired DeLong | paired bootstrap |", "|---|---|---|---|"]
        for kind in ("tiny", *others):
            for seed, first, second in zip(seeds, runs[kind], runs["untrained"], strict=True):
                lines.append(f"| {kind} | {seed} | " + " | ".join(compare(first, second)) + " |")
        lines.append("")
        for kind, results in runs.items():
            if all("seconds" in run for run in results):
                fit, test = (median(run["seconds"][step] for run in results) for step in ("fit", "evaluate"))
                lines += [f"Median seconds of a draw with {kind}: fit {fit:.0f}, evaluate {test:.0f}.", ""]
        print("\n".join(lines[-14:]))
    machine = (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    if given.docs:
        made = f"{given.shots} shots of each class, {len(seeds)} draws, recipe `{given.recipe}`; {machine}."
        write_between(given.docs, "real sets", "\n".join([made, "", *lines]))


if __name__ == "__main__":
    main()
