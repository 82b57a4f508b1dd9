"""Studies from an archive and results back: with a real one, and with servers that hang, refuse or answer half."""

import json
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.uid import JPEG2000Lossless, generate_uid

from clinical.conftest import tool
from data.scanner import dicom, save, slices
from madclip.clinical import dicomweb
from madclip.clinical.dicomweb import Address, fetch, store
from madclip.errors import DataError


@pytest.fixture
def study(tmp_path, orthanc):
    """A study of three slices in the archive: its UID."""
    uid = generate_uid()
    paths = slices(tmp_path / "sent", [0.0, 3.0, 6.0], StudyInstanceUID=uid, SeriesInstanceUID=generate_uid())
    DICOMwebClient(orthanc).store_instances([pydicom.dcmread(path) for path in paths])
    return uid


def test_a_study_is_fetched_whole(tmp_path, orthanc, study):
    sent = [pydicom.dcmread(path) for path in sorted((tmp_path / "sent").glob("*.dcm"))]
    told = []
    address = Address.parse(f"dicomweb+{orthanc}/studies/{study}")
    paths = fetch(address, tmp_path / "got", lambda *said: told.append(said))
    assert [path.name for path in paths] == ["000000.dcm", "000001.dcm", "000002.dcm"]
    got = sorted((pydicom.dcmread(path) for path in paths), key=lambda one: one.InstanceNumber)
    for one, other in zip(got, sent, strict=True):
        np.testing.assert_array_equal(one.pixel_array, other.pixel_array)
        assert one.SOPInstanceUID == other.SOPInstanceUID
    assert told[-1] == ("fetch", 3, 3)
    series = Address.parse(f"dicomweb+{orthanc}/studies/{study}/series/{sent[0].SeriesInstanceUID}")
    assert len(fetch(series, tmp_path / "series")) == 3
    assert store(orthanc, paths) == 3


def test_predict_takes_a_study_of_an_archive(tmp_path, orthanc, study, madclip_run, small_detector):
    out = tmp_path / "out"
    code = madclip_run("predict", small_detector, f"dicomweb+{orthanc}/studies/{study}", "--out", out)
    assert code == 0
    (row,) = (json.loads(line) for line in (out / "series.jsonl").read_text().splitlines())
    assert row["images"] == 3


def test_what_is_missing_is_said(tmp_path, orthanc):
    with pytest.raises(DataError, match="has no instances of this study"):
        fetch(Address(orthanc, "1.2.3"), tmp_path / "none")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DataError, match="cannot be reached"):
        fetch(Address(f"http://127.0.0.1:{port}", "1.2.3"), tmp_path / "none")


@pytest.mark.parametrize(
    "text",
    [
        "dicomweb+https://host/dicom-web/studies/1.2.x",
        "dicomweb+https://host/dicom-web/studies/../../etc",
        "dicomweb+ftp://host/studies/1.2",
        "dicomweb+https:///studies/1.2",
        "https://host/studies/1.2",
        "dicomweb+https://me:secret@host/studies/1.2",
        "dicomweb+https://host/studies/1.2?token=secret",
    ],
)
def test_addresses_that_are_none(text):
    with pytest.raises(DataError) as caught:
        Address.parse(text)
    assert "secret@" not in str(caught.value)


def test_an_address():
    assert Address.parse("dicomweb+https://host:8042/a/b/studies/1.2.3") == Address("https://host:8042/a/b", "1.2.3")
    assert Address.parse("dicomweb+http://host/studies/1.2/series/3.4/") == Address("http://host", "1.2", "3.4")


LISTED = json.dumps([{"00080018": {"vr": "UI", "Value": ["1.2.3.4"]}}]).encode()


@contextmanager
def archive(answer, listed=LISTED, heard=None, context=None):
    """A server that gives one answer to every search, and another one to what is retrieved; `heard` gets headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if heard is not None:
                heard.append(self.headers)
            found = listed if "instances" in self.path else answer
            if found == "hang":
                waiting.wait(20)
                return
            status, body = found if isinstance(found, tuple) else (200, PART if found == "drip" else found)
            self.send_response(status)
            kind = (
                "application/dicom+json"
                if body == listed
                else 'multipart/related; type="application/dicom"; boundary=B'
            )
            self.send_header("Content-Type", kind)
            more = {"drip": 10_000}.get(found, 1000 if body.endswith(b"half") else 0)
            self.send_header("Content-Length", str(len(body) + more))
            self.end_headers()
            self.wfile.write(body)
            while found == "drip" and not waiting.wait(0.05):
                self.wfile.write(b"x")

        def log_message(self, *_):
            return

    waiting = threading.Event()
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # whoever asked has gone
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        waiting.set()
        server.shutdown()
        server.server_close()


PART = b"--B\r\nContent-Type: application/dicom\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("hang", "does not answer in time"),
        ((401, b"ZZCANARY"), "answers 401; give MADCLIP_DICOMWEB_USER"),
        ((503, b"ZZCANARY"), "answers 503"),
        (PART + b"ZZCANARY\r\n--B--", "is not DICOM|sent 0 of 1|cannot be reached"),
        (b"--B--", "sent 0 of 1|is not DICOM"),
        (PART + b"half", "cannot be reached|is not DICOM|sent 0 of 1"),
    ],
)
def test_an_archive_that_fails_gives_one_line_in_time(tmp_path, monkeypatch, caplog, answer, said):
    monkeypatch.setattr(dicomweb, "TIMEOUT", (1.0, 1.0))
    with archive(answer) as root, pytest.raises(DataError, match=said) as caught:
        fetch(Address(root, "1.2.3"), tmp_path / "got")
    assert "ZZCANARY" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caplog.records == []


def test_an_archive_that_drips_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(dicomweb, "PATIENCE", 0.3)
    begun = time.monotonic()
    with archive("drip") as root, pytest.raises(DataError, match=r"sends \d+ bytes in 0 s, which is too slow"):
        fetch(Address(root, "1.2.3"), tmp_path / "got")
    assert time.monotonic() - begun < 10
    assert not list(tmp_path.rglob("*.dcm"))


def test_credentials_are_never_sent_in_the_clear(tmp_path, monkeypatch):
    monkeypatch.setenv("MADCLIP_DICOMWEB_TOKEN", "secret")
    with pytest.raises(DataError, match="https only"):
        fetch(Address("http://archive.example", "1.2.3"), tmp_path / "got")


@pytest.mark.parametrize("listing", [True, False])
def test_an_answer_without_end_is_cut_off(tmp_path, monkeypatch, listing):
    monkeypatch.setattr(dicomweb, "MAX_ANSWER", 2**16)
    monkeypatch.setattr(dicomweb, "MAX_INSTANCE", 2**20)
    endless = b"[" + b" " * 2**22 if listing else PART + bytes(2**22)
    listed, said = endless if listing else LISTED, "more than is fetched at once"
    with archive(endless, listed=listed) as root, pytest.raises(DataError, match=said):
        fetch(Address(root, "1.2.3"), tmp_path / "got")
    assert not list(tmp_path.rglob("*.dcm"))


def test_what_is_compressed_comes_as_it_is_kept(tmp_path, orthanc):
    made = dicom(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64), StudyInstanceUID=generate_uid())
    made.compress(JPEG2000Lossless, generate_instance_uid=False)
    DICOMwebClient(orthanc).store_instances([pydicom.dcmread(save(made, tmp_path / "sent.dcm"))])
    (path,) = fetch(Address(orthanc, made.StudyInstanceUID), tmp_path / "got")
    got = pydicom.dcmread(path)
    assert got.file_meta.TransferSyntaxUID == JPEG2000Lossless
    assert got.PixelData == pydicom.dcmread(tmp_path / "sent.dcm").PixelData


@pytest.mark.parametrize(
    ("given", "safe", "sent"),
    [
        ({}, True, "Basic bmV0OnJj"),  # net:rc of the netrc file
        ({}, False, None),
        ({"USER": "me", "PASSWORD": "x"}, True, "Basic bWU6eA=="),
        ({"TOKEN": "secret"}, True, "Bearer secret"),  # and not what netrc says
    ],
)
def test_who_we_are_is_said_once_and_never_in_the_clear(tmp_path, monkeypatch, given, safe, sent):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login net password rc")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in given.items():
        monkeypatch.setenv(f"MADCLIP_DICOMWEB_{name}", value)
    monkeypatch.setattr(dicomweb, "_safe", lambda _: safe)
    heard = []
    with archive(b"--B--", heard=heard) as root, pytest.raises(DataError):
        fetch(Address(root, "1.2.3"), tmp_path / "got")
    assert heard[0].get("Authorization") == sent


def test_a_ca_file_counts_whatever_else_is_set(tmp_path, monkeypatch):
    trusted, other = tmp_path / "ours.pem", tmp_path / "other.pem"
    for path in (trusted, other):
        named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        key = ["-newkey", "rsa:2048", "-nodes", "-keyout", path.with_suffix(".key"), "-out", path]
        subprocess.run([tool("openssl"), "req", "-x509", *named, *key], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(trusted, trusted.with_suffix(".key"))
    with archive(b"--B--", context=context) as root:
        address = Address(root.replace("http://127.0.0.1", "https://localhost"), "1.2.3")
        for authority, bundle, said in [
            (trusted, other, "not DICOM|sent 0 of 1"),
            (other, trusted, "cannot be reached"),
        ]:
            monkeypatch.setenv("MADCLIP_DICOMWEB_CA", str(authority))
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
            with pytest.raises(DataError, match=said):
                fetch(address, tmp_path / "got")
    monkeypatch.setenv("MADCLIP_DICOMWEB_CA", str(tmp_path / "none.pem"))
    with pytest.raises(DataError, match="MADCLIP_DICOMWEB_CA names a file that does not exist"):
        fetch(address, tmp_path / "got")
