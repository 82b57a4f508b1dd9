"""What the learning process says, as it is kept: detectors, rows, tokens."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select

from madclip.serve.images import uncertainty
from madclip.serve.project import Project, log, named
from madclip.serve.tables import ABNORMAL, Detector, Feature, Image, Job, Said
from madclip.training.cache import TokenCache

if TYPE_CHECKING:
    from collections.abc import Mapping

    from madclip.serve.wire import Header


WITH_ROWS = 3
"""Detectors whose rows and maps are kept; those of an older one are made again, from tokens, when it is activated."""


def keep_detector(project: Project, job: Job, facts: Header) -> None:
    """Puts a detector that was learned into use; its number is the job's.

    Args:
        project: Whose it is.
        job: The job that made it.
        facts: What `learning.fit` told of it.
    """
    learned: dict[str, Any] = job.learned or {}
    scores = dict(zip(learned, facts["held_out"], strict=True)) if facts["held_out"] else {}
    with project.database.change() as session:
        before = session.get(Detector, project.detector_in_use(session) or 0)
        if not scores and before is not None and job.kind == "refit":
            scores = {number: score for number, score in before.held_out.items() if number in learned}
        curve = {"normal": facts["normal_scores"], "abnormal": facts["abnormal_scores"]}
        kept = ("backbone", "objective", "space", "normal", "abnormal", "masks", "threshold", "operating_point")
        made = Detector(
            id=job.id,
            learned=learned,
            held_out=scores,
            curve=curve,
            out_of_fold=facts["out_of_fold"] or (before.out_of_fold if before and job.kind == "refit" else None),
            changed=difference(before.learned if before else {}, learned),
            **{name: facts[name] for name in (*kept, "uncalibrated", "history", "seconds")},
        )
        session.merge(made)
        session.get_one(Job, job.id).detector_id = job.id
        project.put(session, "detector", str(job.id))
        project.put(session, "space", facts["space"])
        old = session.scalars(select(Detector.id).order_by(Detector.id.desc()).offset(WITH_ROWS)).all()
        session.execute(delete(Said).where(Said.detector_id.in_(old)))
    for number in old:
        shutil.rmtree(project.places.maps(number), ignore_errors=True)
    log("detector made", detector=job.id)


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What changed between what two detectors learned from, in words."""
    added, removed = len(now.keys() - before.keys()), len(before.keys() - now.keys())
    both = now.keys() & before.keys()
    labels = sum(now[key][0] != before[key][0] for key in both)
    masks = sum(now[key][1] != before[key][1] and now[key][0] == before[key][0] == ABNORMAL for key in both)
    parts = [(added, "added"), (removed, "removed"), (labels, "changed")]
    said = [f"{count} {'label' if count == 1 else 'labels'} {what}" for count, what in parts if count]
    said += [f"{masks} {'mask' if masks == 1 else 'masks'} changed"] if masks else []
    return ", ".join(said) or "nothing"


def keep_row(project: Project, said: Header, pooled: bytes, detector: int | None) -> None:
    """Keeps what was found out about an image: its size, its pooled tokens, and its row.

    Args:
        project: Whose it is.
        said: What `learning.predict` told.
        pooled: Pooled tokens, float32.
        detector: Whose row it is; None where there is none.
    """
    number, row = said["image"], said["row"]
    gone = False
    with project.database.change() as session:
        image = session.get(Image, number)
        if image is not None:
            path = str(project.places.uploads / image.path) if image.uploaded else image.path
            image.error = named(said["error"], path, image.name) if "error" in said else None
            image.width, image.height = said.get("width", image.width), said.get("height", image.height)
            if "key" in said:
                session.merge(Feature(image_id=number, space=said["space"], key=said["key"], pooled=pooled))
            gone = detector is not None and session.get(Detector, detector) is None
            if row is not None and detector is not None and not gone:
                row |= {"image": image.name.partition("#")[0] if row["frame"] is not None else image.name}
                row |= {"error": image.error}
                given = Said(detector_id=detector, image_id=number, row=row, score=row["score"])
                given.verdict, given.uncertainty = row["verdict"], uncertainty(row)
                session.merge(given)
            if detector is None:
                project.put(session, "space", said["space"])
    # Where the image or the detector was deleted meanwhile, so is what came of it.
    if image is None and "key" in said:
        TokenCache(project.places.image_tokens).remove(said["key"])
    if detector is not None and (image is None or gone):
        project.places.map(detector, number).unlink(missing_ok=True)
