"""The server behind a real nginx with the site of deploy/: TLS, logins, origins, large uploads, events as they come."""

import json
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from madclip.client import Client

SITE = Path(__file__).parents[2] / "deploy" / "nginx.conf"
TOKEN = "only for this test"


@pytest.fixture
def nginx(tmp_path):
    """Starts nginx with the site before a port; gives the address with TLS, and a context that trusts it."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None or shutil.which("openssl") is None:
        pytest.skip("nginx or openssl is not installed: make tools")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(made, check=True, capture_output=True)
    running = []

    def begin(port):
        with socket.create_server(("127.0.0.1", 0)) as free:
            mine = free.getsockname()[1]
        site = SITE.read_text()
        for said, here in (
            ("443", f"127.0.0.1:{mine}"),
            ("madclip.example.org", "localhost"),
            ("/etc/ssl/madclip.pem", str(certificate)),
            ("/etc/ssl/private/madclip.key", str(key)),
            ("127.0.0.1:8765", f"127.0.0.1:{port}"),
        ):
            assert site.count(said) == 1
            site = site.replace(said, here)
        kept = [f"{name}_temp_path {tmp_path}/nginx-{name};" for name in ("client_body", "proxy", "fastcgi")]
        kept += [f"{name}_temp_path {tmp_path}/nginx-{name};" for name in ("uwsgi", "scgi")]
        settings = tmp_path / "nginx.conf"
        settings.write_text(
            f"daemon off;\npid {tmp_path}/nginx.pid;\nerror_log {tmp_path}/nginx.log;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{' '.join(kept)}\n{site}}}\n"
        )
        running.append(subprocess.Popen([program, "-p", tmp_path, "-c", settings], stderr=subprocess.PIPE))
        context = ssl.create_default_context(cafile=certificate)
        for _ in range(100):
            assert running[0].poll() is None, running[0].stderr.read()
            try:
                socket.create_connection(("127.0.0.1", mine)).close()
                break
            except OSError:
                time.sleep(0.05)
        return f"https://localhost:{mine}", context

    yield begin
    for process in running:
        process.terminate()
        process.wait(10)


def test_the_server_behind_nginx(serve, nginx, tmp_path, quick, draw_images, eventually, monkeypatch):
    from madclip.serve.guard import token_digest

    tokens = tmp_path / "tokens"
    tokens.write_text(f"sha256:{token_digest(TOKEN)}\n")
    server = serve(options=("--token-file", tokens))
    url, context = nginx(server.port)
    monkeypatch.setattr("ssl._create_default_https_context", lambda: context)

    def ask(path, method="GET", body=None, **headers):
        head = {"X-Madclip": "1", **{name.replace("_", "-"): value for name, value in headers.items()}}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{url}{path}", data, head, method=method)
        try:
            with urllib.request.urlopen(request, context=context) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as refused:
            return refused.code, dict(refused.headers), refused.read()

    assert ask("/")[0] == 200
    assert ask("/v1/project")[0] == 401
    status, headers, _ = ask("/v1/session", "POST", {"token": TOKEN}, Origin=url, Content_Type="application/json")
    assert status == 204
    cookie = headers["set-cookie"]
    assert "Secure" in cookie
    assert "HttpOnly" in cookie
    mine = cookie.partition(";")[0]
    assert ask("/v1/project", Cookie=mine, Origin=url)[0] == 200
    assert ask("/v1/project", Cookie=mine, Origin="https://elsewhere.example")[0] == 403

    draw_images(tmp_path, 8)
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 2 * 2**20, "more than nginx takes by itself"
    with Client(url, TOKEN) as client:
        client.upload(tmp_path / "large.png")
        for number in range(8):
            image = client.upload(tmp_path / f"image{number:03d}.png")[0]
            client.label(image, "abnormal" if number % 2 else "normal")
        job = client.fit(**quick | {"changes": quick["changes"] | {"epochs": 2000}})
        with Client(url, TOKEN) as other:
            for said in other.watch(job["id"]):
                if said["state"] == "running" and said["stage"] == "fit":
                    break
        assert client.job(job["id"])["state"] == "running", "events are not kept back until the job ends"
        client.cancel(job["id"])
        eventually(lambda: client.job(job["id"])["state"] == "cancelled")
