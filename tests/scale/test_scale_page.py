"""What docs/scale.md tells people to run on a cluster: it parses, and its numbers fit each other."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

import make_docs

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def parsed(words):
    """The options of a `madclip predict` as the command understands them."""
    program, command, *rest = words
    assert (program, command) == ("madclip", "predict")
    return make_docs.find_command([command]).make_context(command, rest).params


def test_the_job_for_kuberay():
    """What a mistake in would only be seen on a cluster; that it fits the operator's schema was checked by hand."""
    (job,) = map(yaml.safe_load, blocks("yaml"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    asked = parsed(shlex.split(spec["entrypoint"]))
    assert asked["pool"] == "ray"
    assert asked["workers"] == workers["replicas"] == workers["maxReplicas"]
    assert asked["threads"] == int(workers["rayStartParams"]["num-cpus"])
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], workers)]
    for pod in pods:
        (container,) = pod["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        (mount,) = container["volumeMounts"]
        assert mount["name"] in {volume["name"] for volume in pod["volumes"]}
        assert all(str(asked[name]).startswith(mount["mountPath"]) for name in ("detector", "out"))
        assert cluster["rayVersion"] in container["image"]
    assert pods[1]["containers"][0]["resources"]["requests"]["cpu"] == str(asked["threads"])
    assert f"ray:{cluster['rayVersion']}-" in blocks("text")[0]


def test_the_job_for_slurm(tmp_path):
    (script,) = [block for block in blocks("bash") if block.startswith("#!/bin/bash")]
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=True)
    asked = parsed(shlex.split(script[script.rindex("madclip predict") :].replace('"$address"', "auto")))
    nodes, cores = (int(re.search(rf"--{name}=(\d+)", script)[1]) for name in ("nodes", "cpus-per-task"))
    assert asked["workers"] * asked["threads"] == nodes * cores


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines() if "ray job" in line])
def test_the_job_that_is_submitted(line):
    assert parsed(shlex.split(line.partition(" -- ")[2]))["pool"] == "ray"
