"""Studies from an archive and results back: with a real one, and with servers that hang, refuse or answer half."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.uid import generate_uid

from data.scanner import slices
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
def archive(answer):
    """A server that gives one answer to every search, and another one to what is retrieved."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = LISTED if "instances" in self.path else answer
            if found == "hang":
                waiting.wait(20)
                return
            status, body = found if isinstance(found, tuple) else (200, found)
            self.send_response(status)
            kind = (
                "application/dicom+json"
                if body == LISTED
                else 'multipart/related; type="application/dicom"; boundary=B'
            )
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body) + (1000 if body.endswith(b"half") else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            return

    waiting = threading.Event()
    server = HTTPServer(("127.0.0.1", 0), Handler)
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
def test_an_archive_that_fails_gives_one_line_in_time(tmp_path, monkeypatch, answer, said):
    monkeypatch.setattr(dicomweb, "TIMEOUT", (1.0, 1.0))
    with archive(answer) as root, pytest.raises(DataError, match=said) as caught:
        fetch(Address(root, "1.2.3"), tmp_path / "got")
    assert "ZZCANARY" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_credentials_are_never_sent_in_the_clear(tmp_path, monkeypatch):
    monkeypatch.setenv("MADCLIP_DICOMWEB_TOKEN", "secret")
    with pytest.raises(DataError, match="https only"):
        fetch(Address("http://archive.example", "1.2.3"), tmp_path / "got")
