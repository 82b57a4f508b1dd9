"""Parts of the server by themselves: what to label next, the engine that remembers, migrations, models, workers."""

import asyncio
import dataclasses
import json
import os
import threading
import time
import typing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import delete

from madclip import MadCLIP, client
from madclip.errors import DataError
from madclip.prediction import Row
from madclip.serve import guard, suggest, workers
from madclip.serve.api import models
from madclip.serve.database import Database
from madclip.serve.engine import RememberingEngine
from madclip.serve.guard import BURST, CLIENTS, RATE, Guard, Rates
from madclip.serve.intake import open_folder
from madclip.serve.jobs import Jobs
from madclip.serve.orders import setting
from madclip.serve.outcome import difference
from madclip.serve.project import Project
from madclip.serve.tables import Base, Job, Setting
from madclip.serve.workers import BusyError, Pool
from madclip.training.cache import TokenCache


def test_the_migrations_make_what_the_tables_say(tmp_path):
    database = Database(tmp_path / "p.sqlite")
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    Database(tmp_path / "p.sqlite").close()  # nothing to do the second time


def test_a_project_keeps_its_backbone_when_the_default_changes(tmp_path):
    def backbone(change=None):
        project = Project(tmp_path / "p")
        with project.database.change() as session:
            if change:
                change(session)
            found = setting(project, session, {})
        project.close()
        return found["backbone"], found["recipe"]

    assert backbone() == backbone() == ("tiny+lite0", "fused")
    assert backbone(lambda session: session.merge(Setting(key="backbone", value="stand-in"))) == ("stand-in", "madclip")
    assert backbone() == ("stand-in", "madclip")
    # Before there was another default it was not written down.
    assert backbone(lambda session: session.execute(delete(Setting))) == ("tiny", "madclip")
    assert backbone() == ("tiny", "madclip")


def test_the_row_of_the_api_is_the_projects_row():
    assert list(models.Row.model_fields) == [field.name for field in dataclasses.fields(Row)]


def test_the_client_names_the_fields_that_the_api_gives():
    typed = {name: one for name, one in vars(client).items() if typing.is_typeddict(one)}
    assert len(typed) >= 7
    for name, one in typed.items():
        fields = {key: hint.annotation for key, hint in getattr(models, name).model_fields.items()}
        given = typing.get_type_hints(one)
        assert list(given) == list(fields), name
        for key, hint in fields.items():
            assert plain(given[key]) == plain(hint), f"{name}.{key}"


def plain(hint):
    """A type in words; one of the API and that of the client of the same name are the same, a record is any of them."""
    if typing.is_typeddict(hint) or isinstance(hint, type):
        return "dict" if hint is models.Series else hint.__name__
    if typing.get_origin(hint) is dict:
        return "dict"
    if typing.get_origin(hint) is typing.Annotated:
        return plain(typing.get_args(hint)[0])
    parts = [plain(part) if not isinstance(part, str) else part for part in typing.get_args(hint)]
    origin = typing.get_origin(hint)
    return f"{'union' if 'Union' in str(origin) else getattr(origin, '__name__', str(origin))}{sorted(parts)}"


def test_a_client_has_its_share_of_requests():
    rates = Rates()
    assert sum(rates.take("one", 0.0) for _ in range(int(BURST) + 100)) == BURST
    assert rates.take("another", 0.0)
    assert sum(rates.take("one", 2.0) for _ in range(int(BURST))) == 2 * RATE
    for number in range(3 * CLIENTS):
        assert rates.take(f"many {number}", 100.0 + number)
    assert len(rates._left) <= CLIENTS + 1, "clients that ask no longer take no memory"


def test_who_asks_too_much_is_told_when_to_come_again(monkeypatch):
    monkeypatch.setattr(guard, "time", SimpleNamespace(monotonic=lambda: 0.0))  # on a busy machine it takes a while
    said = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        said.append(message)

    async def flood():
        asked = Guard(app, None)
        for address in ["10.0.0.1"] * (int(BURST) + int(RATE)) + ["10.0.0.2"]:
            scope = {"type": "http", "method": "GET", "path": "/", "client": (address, 1)}
            await asked(scope | {"headers": [(b"host", b"localhost")]}, None, send)

    asyncio.run(flood())
    statuses = [message["status"] for message in said if message["type"] == "http.response.start"]
    assert statuses[: int(BURST)] == [200] * int(BURST)
    assert 429 in statuses
    assert statuses[-1] == 200, "another client has a share of its own"
    refused = next(message for message in said if message.get("status") == 429)
    assert (b"retry-after", b"1") in refused["headers"]
    assert json.loads(said[said.index(refused) + 1]["body"])["error"]["code"] == "rate"


def test_what_changed_is_said_in_words():
    before = {"1": ["normal", None], "2": ["abnormal", None], "3": ["abnormal", "a"]}
    now = {"1": ["abnormal", None], "3": ["abnormal", "b"], "4": ["normal", None], "5": ["normal", None]}
    assert difference(before, now) == "2 labels added, 1 label removed, 1 label changed, 1 mask changed"
    assert difference(now, now) == "nothing"


# What to label next


def clusters(*sizes, seed=0):
    """Images of kinds that look apart."""
    generator = np.random.default_rng(seed)
    centres = np.eye(len(sizes), 8) * 10
    return np.concatenate([centres[k] + generator.normal(0, 0.1, (n, 8)) for k, n in enumerate(sizes)])


def test_without_labels_every_kind_of_image_comes_before_a_second_of_any():
    pooled = clusters(30, 5, 2, 1)
    kinds = np.repeat(range(4), (30, 5, 2, 1))
    found = suggest.what_next(pooled, np.full(38, -1, np.int8), np.full(38, np.nan), 10)
    assert sorted(kinds[one.place] for one in found[:4]) == [0, 1, 2, 3]
    assert kinds[found[0].place] == 0
    assert found[0].reason == suggest.TYPICAL
    assert {one.reason for one in found[1:]} == {suggest.UNLIKE_THOSE}, "nothing is labelled yet"
    assert len({one.place for one in found}) == 10


def test_without_labels_another_kind_of_image_comes_before_an_extreme_one_of_the_same_kind():
    side = np.r_[np.full(20, 1.0), np.full(10, -1.0), 4.0]  # all images share most of what they are
    pooled = np.c_[np.full(31, 10.0), side, np.random.default_rng(0).normal(0, 0.05, (31, 6))]
    first, second = suggest.what_next(pooled, np.full(31, -1, np.int8), np.full(31, np.nan), 2)
    assert first.place < 20
    assert 20 <= second.place < 30


def test_with_a_detector_the_reasons_are_true():
    pooled = clusters(20, 20, 4)
    labels = np.full(44, -1, np.int8)
    labels[[0, 1, 2]], labels[[20, 21, 22]] = 0, 1
    chance = np.r_[np.full(20, 0.1), np.full(20, 0.9), np.full(4, 0.95)]
    chance[7], chance[8], chance[30] = 0.52, 0.97, 0.03
    found = {one.reason: one.place for one in reversed(suggest.what_next(pooled, labels, chance, 4))}
    assert suggest.what_next(pooled, labels, chance, 1)[0] == (7, suggest.UNCERTAIN)
    assert found[suggest.UNLIKE] >= 40
    disagreeing = {place for reason, place in found.items() if reason in suggest.DISAGREES}
    assert disagreeing <= {8, 30}
    assert disagreeing


def test_a_kind_of_image_comes_before_an_outlier_once_a_detector_tells_classes_apart():
    pooled = clusters(20, 20, 10, 1)
    labels = np.full(51, -1, np.int8)
    labels[:2], labels[20:23] = 0, 1
    kind, _, outlier = suggest.what_next(pooled, labels, np.r_[np.full(20, 0.1), np.full(20, 0.9), np.full(11, 0.8)], 3)
    assert kind.reason == suggest.UNLIKE
    assert 40 <= kind.place < 50
    assert outlier == (50, suggest.UNLIKE)  # one of a kind stands for the rest


def test_the_border_lies_between_what_is_said_of_labelled_images():
    labels = np.array([0, 0, 0, 1, 1, 1, -1, -1, -1], np.int8)
    score = np.array([0.70, 0.71, 0.72, 0.80, 0.81, 0.82, 0.50, 0.76, np.nan])  # a score is no probability
    unsure = suggest.uncertainty(labels, score)
    assert np.nanargmax(unsure) == 7
    assert np.isnan(unsure[8])
    assert np.isnan(suggest.uncertainty(labels, 1 - score)).all()  # the wrong way round: nothing to go by
    assert np.isnan(suggest.uncertainty(labels.clip(max=0), score)).all()


def test_the_reasons_go_on_where_labels_are_given_one_by_one():
    pooled = clusters(30, 30)
    labels = np.full(60, -1, np.int8)
    labels[[0, 1, 30, 31]] = 0, 0, 1, 1
    chance = np.r_[np.linspace(0.1, 0.6, 30), np.linspace(0.4, 0.9, 30)]
    at_once = [one.reason for one in suggest.what_next(pooled, labels, chance, 4)]
    one_by_one = []
    for _ in range(4):
        asked = suggest.what_next(pooled, labels, chance, 1)[0]
        labels[asked.place] = int(asked.place >= 30)
        one_by_one.append(asked.reason)
    assert {suggest.UNLIKE, suggest.UNCERTAIN} <= set(at_once) & set(one_by_one)


def test_there_is_nothing_to_label_when_all_is():
    pooled = clusters(3, 3)
    assert suggest.what_next(pooled, np.array([0, 0, 0, 1, 1, 1], np.int8), np.full(6, 0.5), 5) == []
    only = suggest.what_next(pooled, np.array([0, 0, 0, 1, 1, -1], np.int8), np.full(6, np.nan), 5)
    assert [one.place for one in only] == [5]


# The engine that remembers


def test_the_engine_says_what_the_detector_says_and_computes_nothing_twice(small_detector, small_data, tmp_path):
    files = sorted((small_data / "test").rglob("*.png"))[:6]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"x")
    inputs = [*files[:3], broken, *files[3:]]
    model = MadCLIP.load(small_detector, device="cpu")
    plain = list(model.predict_iter(inputs))
    cache = TokenCache(tmp_path / "tokens")
    engine = RememberingEngine(model.backbone, model.recipe.view, cache, model.state.score)
    model.engine = engine
    calls = []
    tower = model.backbone.towers[0]
    encode = type(tower).patch_tokens
    try:
        type(tower).patch_tokens = lambda self, pixels, **more: (
            calls.append(len(pixels)) or encode(self, pixels, **more)
        )
        for turn in range(2):
            found = list(model.predict_iter(inputs, batch_size=4))
            assert len(engine.found) == sum(not isinstance(one, DataError) for one in found)
            keys = [engine.found.popleft()[0] for _ in range(len(engine.found))]
            for one, other in zip(plain, found, strict=True):
                if isinstance(one, DataError):
                    assert isinstance(other, DataError)
                else:
                    assert other.score == pytest.approx(one.score, abs=1e-6)
                    assert np.allclose(other.anomaly_map, one.anomaly_map, atol=1e-5)
                    assert (other.verdict, other.familiar) == (one.verdict, one.familiar)
            assert sum(calls) == len(set(keys)), turn
    finally:
        type(tower).patch_tokens = encode
    cache.remove(keys[0])
    assert cache.load(keys[0]) is None


def test_the_engine_gives_a_memory_of_normal_images_the_tokens_that_it_takes(
    small_data, small_recipe, small_backbone, tmp_path
):
    normal = sorted((small_data / "valid" / "good").rglob("*.png"))[:3]
    files = sorted((small_data / "test").rglob("*.png"))
    model = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain").fit(normal, [0] * len(normal))
    plain = list(model.predict_iter(files[-4:]))
    keeps = model.state.head.keeps_prefix
    assert keeps
    assert model.backbone.spec.prefix_tokens
    cache = TokenCache(tmp_path)
    model.engine = RememberingEngine(model.backbone, model.recipe.view, cache, model.state.score, keeps_prefix=keeps)
    for _ in range(2):
        found = list(model.predict_iter(files[-4:]))
        assert [one.score for one in found] == pytest.approx([one.score for one in plain], abs=1e-6)


def test_a_detector_that_computes_nonsense_leaves_the_rest_in_order(small_detector, small_data, tmp_path):
    model = MadCLIP.load(small_detector, device="cpu")
    files = sorted((small_data / "test").rglob("*.png"))[:4]

    def odd(tokens):
        scores, maps = model.state.score(tokens)
        scores[0] = torch.nan
        return scores, maps

    engine = RememberingEngine(model.backbone, model.recipe.view, TokenCache(tmp_path), odd)
    model.engine = engine
    found = list(model.predict_iter(files, batch_size=2))
    assert [isinstance(one, DataError) for one in found] == [True, False, True, False]
    assert len(engine.found) == 2


# Workers


def test_a_worker_that_takes_too_long_is_ended_and_replaced(tmp_path):
    fifo = tmp_path / "never.png"
    os.mkfifo(fifo)
    with Pool("madclip.serve.reading", 1, 0) as pool:
        with pytest.raises(DataError, match="longer than 1 s"):
            pool.call("kind", path=str(fifo), seconds=1)
        with pytest.raises(DataError, match="cannot be opened"):
            pool.call("kind", path=str(tmp_path / "none.png"))


def test_a_worker_that_takes_too_much_memory_is_ended_and_replaced(tmp_path, monkeypatch):
    fifo = tmp_path / "never.png"
    os.mkfifo(fifo)
    with Pool("madclip.serve.reading", 1, 0, memory=1_500_000_000) as pool:
        monkeypatch.setattr(workers, "resident", lambda process: 2_000_000_000)
        with pytest.raises(DataError, match=r"took more than 1\.5 GB of memory, so it is not used"):
            pool.call("kind", path=str(fifo))
        monkeypatch.undo()
        assert 10_000_000 < workers.resident(os.getpid()) < workers.memory_of_machine()
        with pytest.raises(DataError, match="cannot be opened"):
            pool.call("kind", path=str(tmp_path / "none.png"))


def test_a_job_that_outgrows_its_memory_fails_with_a_reason_and_the_next_is_done(tmp_path, draw_images, eventually):
    (tmp_path / "images").mkdir()
    draw_images(tmp_path / "images", 2)
    project = Project(tmp_path / "project", ("stand-in",))
    project.limit_tokens(2**30)
    open_folder(project, tmp_path / "images")
    for memory, state in ((100_000_000, "failed"), (workers.memory_of_machine(), "done")):
        jobs = Jobs(project, memory)
        with project.database.change() as session:
            parameters = {"backbone": "stand-in", "changes": {"image_size": 64}}
            number = jobs.add(session, "predict", parameters).id
        jobs.start()

        def ended(number=number):
            with project.database.look() as session:
                job = session.get(Job, number)
                return job.state in ("done", "failed") and job

        job = eventually(ended, 60)
        jobs.close()
        assert job.state == state
        more = "this job took more than 0.1 GB of memory: use fewer or smaller images, or a smaller backbone"
        assert job.error == (more if state == "failed" else None)
    project.close()


def test_no_more_wait_than_there_is_room_for(tmp_path):
    fifo = tmp_path / "never.png"
    os.mkfifo(fifo)
    with Pool("madclip.serve.reading", 1, 1) as pool:
        errors = []

        def ask():
            try:
                pool.call("kind", path=str(fifo), seconds=2)
            except DataError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        with pytest.raises(BusyError):
            pool.call("kind", path=str(fifo))
        for thread in threads:
            thread.join(20)
        assert len(errors) == 2
