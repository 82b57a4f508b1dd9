"""Ray behind the interface of local processes: the same rows, whoever is killed, on a cluster of two nodes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from archives import Stub
from test_archive import bytes_of, refused, rows, run, wait_for_parts, write_listing
from test_executor import Slowly, fail

from madclip import MadCLIP
from madclip.benchmark.experiments import cells_of
from madclip.benchmark.plan import Plan
from madclip.benchmark.runner import run as bench
from madclip.data.load import load_dataset
from madclip.data.ref import ImageRef
from madclip.errors import DataError, RecipeError
from madclip.evaluation.repeat import repeat
from madclip.phantoms.dataset import write_phantoms
from madclip.scale import ray_pool
from madclip.scale.archive import CHUNK
from madclip.scale.executor import LocalProcesses
from madclip.scale.listing import found, listing
from madclip.scale.ray_pool import RayExecutor, Worker
from madclip.scale.scoring import SavedDetector, detector_digest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU on this machine, to which this process stays connected.

    A test that kills one starts another. Ray is left once: as it is left, its driver once crashed (2.60), and pytest
    with it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(SOURCE), str(HERE), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("OMP_NUM_THREADS", "1")
        import ray
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=node)
        made.second = made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        made.wait_for_nodes()
        ray.init(address=made.address, logging_level="ERROR", log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


def apart(code, **variables):
    """What Python prints that runs some code in a process of its own, connected to no cluster."""
    path = os.pathsep.join([str(SOURCE), str(HERE)])
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = bare | {"PYTHONPATH": path} | variables
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_results_come_in_the_order_of_the_items(cluster):
    found = list(RayExecutor(cluster.address, 2).run(Slowly(), range(6)))
    assert [row[:2] for row in found] == [(item, item**2) for item in range(6)]
    assert {row[4] for row in found} == {1}, "threads of torch"
    processes = {row[2] for row in found}
    assert len(processes - {os.getpid()}) == 2
    for process in processes:  # what the work keeps stays in its process
        calls = [row[3] for row in found if row[2] == process]
        assert calls == sorted(calls)


def test_an_error_of_the_work_is_the_callers(cluster):
    with pytest.raises(DataError, match=r"^item 1$"):
        list(RayExecutor(cluster.address, 1).run(fail, [1, 2]))


ERRORS = """
from test_executor import fail
from madclip.errors import MadCLIPError
from madclip.scale.ray_pool import RayExecutor
for _ in range(2):  # and once more, after Ray was left
    try:
        list(RayExecutor(%s, 1).run(fail, [1, 2]))
    except MadCLIPError as error:
        print(type(error).__name__, error)
"""


def test_an_error_of_the_work_in_a_job(cluster):
    """A job that was submitted finds its cluster in RAY_ADDRESS."""
    assert apart(ERRORS % None, RAY_ADDRESS=cluster.address) == "DataError item 1\n" * 2


def test_whoever_is_connected_is_not_led_to_another_cluster(cluster):
    with pytest.raises(RecipeError, match=f"is connected to the Ray cluster at {cluster.address}"):
        list(RayExecutor("127.0.0.1:1").run(fail, [1]))


@pytest.mark.soak
def test_workers_do_not_change_the_rows(tmp_path, cluster, small_detector, soak):
    """Phantoms under many names, by the fitted detector: no Ray, one worker and two write the same bytes."""
    count = soak(20_000)
    half = count // 40
    write_phantoms(tmp_path / "drawn", "fundus", normal=half, abnormal=half, seed=0, size=64, shots=1)
    drawn = sorted((tmp_path / "drawn" / "test").glob("*/img/*.png"))
    (tmp_path / "in").mkdir()
    images = [tmp_path / "in" / f"{number}.png" for number in range(count)]
    for number, image in enumerate(images):
        image.hardlink_to(drawn[number % len(drawn)])
    scoring = SavedDetector(small_detector, detector_digest(small_detector), "axial", device="cpu")
    source = found([ImageRef(image) for image in images])
    executors = {"none": LocalProcesses(), "one": RayExecutor(cluster.address, 1), "two": RayExecutor(cluster.address)}
    for name, executor in executors.items():
        assert run(source, tmp_path / name, scoring, executor=executor) == (count, count, 0)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "none")
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "none")
    assert len({row["score"] for row in rows(tmp_path / "none")}) > len(drawn) / 2


def start(table, out, *options):
    command = [sys.executable, HERE / "archives.py", table, out, "ray", *options]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)


def test_killed_actors_drivers_and_nodes(tmp_path, cluster):
    """kill -9 of a worker, of the driver, and of a raylet of the run that goes on; the rows are all there, once."""
    table, out, pids = write_listing(tmp_path / "listing.parquet", 16 * CHUNK), tmp_path / "out", tmp_path / "pids"
    pids.mkdir()
    run(listing(str(table)), tmp_path / "whole", name=str(table))
    driver = start(table, out, cluster.address, 2, 0.006, pids)
    wait_for_parts(out, 1, driver)
    os.kill(int(next(pids.iterdir()).name), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while len(list(pids.iterdir())) < 3:  # the worker that was killed is replaced
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    wait_for_parts(out, 3, driver)
    driver.kill()
    driver.wait()
    there = bytes_of(out)
    assert 3 <= len(there) < 16
    driver = start(table, out, cluster.address, 2, 0.003, pids)
    wait_for_parts(out, min(len(there) + 2, 15), driver)
    cluster.remove_node(cluster.second, allow_graceful=False)
    said, _ = driver.communicate(timeout=120)
    cluster.second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    assert json.loads(said)["counts"] == [16 * CHUNK, 16 * CHUNK, 0]
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_a_poisoned_file_becomes_a_row(tmp_path, cluster, monkeypatch):
    """It ends its worker a bounded number of times; all others are as if it could merely not be read."""
    monkeypatch.setattr(ray_pool, "TRIES", 2)
    names = [f"{number}.png" for number in range(CHUNK + 20)]
    names[7] = "broken.png"
    (tmp_path / "plain.csv").write_text("\n".join(["image", *names]))
    names[11] = "poison.png"
    (tmp_path / "poisoned.csv").write_text("\n".join(["image", *names]))
    plain, poisoned, pids = tmp_path / "plain", tmp_path / "poisoned", tmp_path / "pids"
    pids.mkdir()
    run(listing(f"{plain}.csv"), plain)
    counts = run(listing(f"{poisoned}.csv"), poisoned, Stub(folder=str(pids)), executor=RayExecutor(cluster.address, 1))
    assert counts == (CHUNK + 20, CHUNK + 20, 2)
    expected, got = rows(plain), rows(poisoned)
    bad = got.pop(11)
    expected.pop(11)
    assert got == expected
    assert bad["score"] is None
    assert bad["error"] == f"{tmp_path / 'poison.png'}: ended its worker each time that it was read"
    assert len(list(pids.iterdir())) <= 2 * 2 + 3, "workers, two of which each chunk and image may end"


def test_a_worker_that_dies_is_said_where_nothing_stands_for_its_result(cluster, monkeypatch):
    monkeypatch.setattr(ray_pool, "TRIES", 1)
    with pytest.raises(DataError, match="ended 1 times by the same work"):
        list(RayExecutor(cluster.address, 1).run(Ending(), [1]))


# Experiments


def test_bench_and_repeat_say_the_same(tmp_path, cluster, small_data, small_recipe):
    """The cells of an experiment and the draw of a repetition, by workers and in this process."""
    changes = {"image_size": 64, "variants": ("identity",), "epochs": 1, "batch_size": 8}
    plan = Plan("real", "stand-in", {"mine": small_data}, {"mine": "Brain"}, changes, device="cpu")
    cells = cells_of("real", ["mine"], ["madclip", "nearest-mean"], 1, [2])
    data = load_dataset(small_data)
    said = {}
    for name, executor in {"here": LocalProcesses(), "ray": RayExecutor(cluster.address, 2)}.items():
        assert bench(cells, plan, tmp_path / name, executor=executor) == []
        detector = MadCLIP(small_recipe, backbone="stand-in", objective="Brain", device="cpu")
        out = tmp_path / f"{name}-repeat"
        summary = repeat(detector, data, out, seeds=(3,), shots=2, folds=0, each=executor.run)
        said[name] = {key: value for key, value in summary.items() if key != "runs"}
    assert (tmp_path / "ray" / "results.csv").read_bytes() == (tmp_path / "here" / "results.csv").read_bytes()
    assert said["ray"] == said["here"]


class Ending:
    """A work whose items end their worker."""

    def __call__(self, item):
        os.kill(os.getpid(), signal.SIGKILL)


# What is refused


def test_a_cluster_without_room(tmp_path, cluster):
    source = found([ImageRef(Path("a"))])
    for lacking in (RayExecutor(cluster.address, gpus=0.5), RayExecutor(cluster.address, threads=64)):
        refused(source, tmp_path / "out" / str(lacking.threads), "no node of the Ray cluster has", executor=lacking)


def test_another_version_of_ray(cluster):
    """The cluster's own record of its version is changed, which the driver reads as it connects."""
    from ray._raylet import GcsClient

    table = GcsClient(address=cluster.address)
    facts = table.internal_kv_get(b"CLUSTER_METADATA", b"cluster")
    changed = json.dumps(json.loads(facts) | {"ray_version": "2.9.0"}).encode()
    table.internal_kv_put(b"CLUSTER_METADATA", changed, True, b"cluster")
    try:
        said = apart(ERRORS % repr(cluster.address)).splitlines()
    finally:
        table.internal_kv_put(b"CLUSTER_METADATA", facts, True, b"cluster")
    assert len(said) == 2
    for line in said:
        assert re.match(r"DataError .*Version mismatch.*2\.9\.0", line)


STRANGER = """
import os, subprocess, sys
from madclip.scale.ray_pool import RayExecutor
def look(item):
    import ray
    code = "from ray._raylet import GcsClient; GcsClient(address=%r)" % ray.get_runtime_context().gcs_address
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    given = {**bare, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
    run = lambda env: subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    refused = "AuthenticationError" in run(bare).stderr
    return run(given).returncode, refused, os.environ["RAY_USAGE_STATS_ENABLED"]
print(*RayExecutor(None, 1).run(look, [1]), *RayExecutor(None, 1).run(abs, [-1]), "RAY_AUTH_TOKEN" in os.environ)
"""


def test_a_ray_that_is_started_here_listens_to_nobody_else():
    assert apart(STRANGER) == "(0, True, '0') 1 False\n"


def test_another_version_of_the_package():
    with pytest.raises(DataError, match=r"has madclip .*, this one 0\.0\.1"):
        Worker(fail, 1, "0.0.1", ".").check()


def test_addresses_where_nothing_or_something_else_answers():
    before = time.perf_counter()
    assert re.match(r"DataError no Ray cluster at .*:1 \(", apart(ERRORS % "'127.0.0.1:1'"))
    assert apart(ERRORS % "'nowhere.invalid:1'").startswith("DataError no Ray cluster at")
    with socket.create_server(("", 0)) as server:

        def answer():
            for _ in range(2):
                server.accept()[0].sendall(b"SSH-2.0-x\r\n")

        threading.Thread(target=answer, daemon=True).start()
        said = apart(ERRORS % repr(f"127.0.0.1:{server.getsockname()[1]}"))
        assert said.count("something else answers") == 2
    assert time.perf_counter() - before < 60
    assert apart(ERRORS % None, RAY_ADDRESS="127.0.0.1:1").startswith("DataError no Ray cluster")


def test_what_is_finished_asks_no_cluster(tmp_path):
    run(found([ImageRef(Path("a"))]), tmp_path / "out")
    assert run(found([ImageRef(Path("a"))]), tmp_path / "out", executor=RayExecutor("127.0.0.1:1")) == (1, 1, 0)


def test_a_local_run_imports_no_ray():
    code = (
        "import sys, madclip.cli.predict, madclip.cli.archive, madclip.scale.archive, madclip.benchmark.runner\n"
        "from madclip.scale.executor import LocalProcesses\n"
        "assert list(LocalProcesses().run(abs, [-1])) == [1]\n"
        "sys.exit(bool({'ray', 'pyarrow', 'fsspec'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
