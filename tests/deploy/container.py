"""Builds and runs what a Dockerfile says without an engine or a network: stages are overlays of this machine's root.

`unshare --mount --net --pid --fork python container.py DOCKERFILE CONTEXT` as root; what was seen is printed as JSON.
Python and its packages are those that run this, so that pip finds all that it is asked for but the package itself.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

TOKEN = "of this test alone"
MACHINE = {
    "PATH": f"{sys.base_prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": sysconfig.get_path("purelib"),
    "PIP_NO_INDEX": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # which pip reads as --no-build-isolation
    "PIP_CONFIG_FILE": "/dev/null",
    "OMP_NUM_THREADS": "1",
}
"""What the base image would have, and what keeps pip from the network."""


def instructions(dockerfile):
    """Word and rest of each instruction."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


def reaches_the_builder(dockerfile):
    """What of the context may be copied, by a .dockerignore that begins with all and names what stays."""
    lines = [line for line in Path(f"{dockerfile}.dockerignore").read_text().splitlines() if line[:1] != "#"]
    assert lines[0] == "*"
    return {line[1:] for line in lines if line.startswith("!")}


class Container:
    """One stage: an overlay of /, and what the instructions have set."""

    def __init__(self, scratch):
        self.scratch, self.root = scratch, scratch / "root"
        for name in ("root", "upper", "work"):
            (scratch / name).mkdir(parents=True)
        layers = f"lowerdir=/,upperdir={scratch}/upper,workdir={scratch}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True)
        subprocess.run(["mount", "--rbind", "/dev", self.root / "dev"], check=True)
        subprocess.run(["mount", "-t", "proc", "proc", self.root / "proc"], check=True)
        for folder in Path(sys.base_prefix).parents:  # a base image's Python may be run by every user
            (self.root / folder.relative_to("/")).chmod(0o755)
        self.environment, self.user, self.folder, self.said = dict(MACHINE), None, "/", {}

    def at(self, path):
        return self.root / str(path).lstrip("/")

    def command(self, *words):
        """How something is run in it: as its user, without privileges, in its folder."""
        drop = [] if self.user is None else ["setpriv", "--reuid", self.user[0], "--regid", self.user[1]]
        drop += [] if self.user is None else ["--clear-groups", "--no-new-privs", "--bounding-set=-all"]
        return ["chroot", self.root, "sh", "-c", f'cd {self.folder} && exec "$@"', "-", *drop, *words]

    def run(self, *words, check=True):
        return subprocess.run(
            self.command(*words), env=self.environment, check=check, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )


def build(dockerfile, context, scratch):  # noqa: C901  (a branch for each instruction)
    """The last stage of a Dockerfile."""
    stages, allowed = {}, reaches_the_builder(dockerfile)
    for word, rest in instructions(dockerfile):
        if word == "FROM":
            name = rest.partition(" AS ")[2] or "last"
            now = stages[name] = Container(scratch / name)
        elif word == "ENV":
            for pair in shlex.split(rest):
                key, _, value = pair.partition("=")
                now.environment[key] = value.replace("$PATH", now.environment["PATH"])
        elif word == "RUN":
            done = now.run("sh", "-c", rest, check=False)
            assert done.returncode == 0, f"{rest}: {done.stdout.decode()[-2000:]}"
        elif word == "COPY":
            given = rest.split()
            source = stages[given.pop(0).removeprefix("--from=")].root if given[0].startswith("--from") else context
            for name in given[:-1]:
                assert source is not context or name.split("/")[0] in allowed, f"{name} does not reach the builder"
                copy(source / name.lstrip("/"), now.at(given[-1]), given[-1].endswith("/"))
        elif word == "USER":
            now.user = rest.split(":")
        elif word == "WORKDIR":
            now.folder = rest
        elif word == "HEALTHCHECK":
            now.said[word] = json.loads(rest.partition("CMD")[2])
        elif word in ("ENTRYPOINT", "CMD", "VOLUME", "EXPOSE"):
            now.said[word] = json.loads(rest) if rest.startswith("[") else rest
        else:
            raise AssertionError(f"{word} is not known here")
    return stages["last"]


def copy(source, target, into):
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        if into:
            target.mkdir(exist_ok=True)
        shutil.copy(source, target)


def seal(made, scratch):
    """Mounts the volume, with the owner that it has in the image, lays the token beside; all else is read-only."""
    volume, inside = scratch / "volume", made.at(made.said["VOLUME"])
    volume.mkdir()
    os.chown(volume, inside.stat().st_uid, inside.stat().st_gid)
    volume.chmod(inside.stat().st_mode & 0o777)
    subprocess.run(["mount", "--bind", volume, inside], check=True)
    from madclip.serve.guard import token_digest

    tokens = made.at("/run/secrets/tokens")
    tokens.parent.mkdir(parents=True, exist_ok=True)
    tokens.write_text(f"sha256:{token_digest(TOKEN)}\n")
    subprocess.run(["mount", "-o", "remount,ro", made.root], check=True)
    return volume


def visit(url, folder):
    """What a client of it does: status without a token, a fit with one, the state of a prediction."""
    from madclip.client import Client

    try:
        with urllib.request.urlopen(f"{url}/v1/project") as answer:
            status = answer.status
    except urllib.error.HTTPError as refused:
        status = refused.code
    generator = np.random.default_rng(0)
    with Client(url, TOKEN) as client:
        for number in range(8):
            pixels = generator.normal(100, 12, (64, 64))
            pixels[20:34, 20:34] += 90 * (number % 2)
            file = folder / f"{number}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)
            client.label(client.upload(file)[0], "abnormal" if number % 2 else "normal")
        quick = {"image_size": 72, "epochs": 1, "batch_size": 8, "variants": ["identity"]}
        client.wait(client.fit(folds=2, changes=quick))
        said = client.predict(client.detectors()[0]["id"], file, "png")
        page = io.BytesIO(client.raw("GET", "/")[0]).read().decode()
    return {"without": status, "score": said["rows"][0]["score"], "page": "<script" in page}


def processes(user):
    """Privileges of the processes of a user."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        facts = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        if facts["Uid"].split()[1] == user:
            found.append([facts["NoNewPrivs"], facts["CapBnd"].strip("0 "), facts["CapEff"].strip("0 ")])
    return found


def main(dockerfile, context):
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    scratch = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", scratch], check=True)
    made = build(Path(dockerfile), Path(context), scratch)
    volume = seal(made, scratch)
    before = made.run(*made.said["HEALTHCHECK"], check=False).returncode
    command = made.command(*made.said["ENTRYPOINT"], *made.said["CMD"])
    running = subprocess.Popen(command, env=made.environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 90
    while made.run(*made.said["HEALTHCHECK"], check=False).returncode:
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.5)
    outside = made.run("touch", "/opt/madclip/written", "/tmp/written", check=False).returncode
    seen = visit(f"http://127.0.0.1:{made.said['EXPOSE']}", scratch)
    seen |= {"before": before, "outside": outside, "processes": processes(made.user[0])}
    running.terminate()
    seen["ended"] = running.wait(20)
    owners = {(path.stat().st_uid, path.stat().st_mode & 0o077) for path in volume.rglob("*") if path.is_file()}
    print(
        json.dumps(
            seen | {"files": sorted(owners), "user": made.user, "kept": sorted(path.name for path in volume.iterdir())}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
