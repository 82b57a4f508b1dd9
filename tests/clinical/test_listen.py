"""The storage service: what arrives is predicted once and sent on, whoever is away meanwhile."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt

from clinical.conftest import free_port
from data.scanner import slices
from madclip.clinical import listen
from madclip.clinical.listen import Peer, Spool, handle, send_to, serve
from madclip.clinical.objects import Finding, Origin, headers_for, picture, report
from madclip.errors import DataError, RecipeError


def send(port, paths, calling="SCANNER", called="MADCLIP"):
    """The status of each instance, or nothing where the association is refused."""
    entity = AE(ae_title=calling)
    for uid in {str(pydicom.dcmread(path).SOPClassUID) for path in paths}:
        entity.add_requested_context(uid)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return []
    found = [association.send_c_store(pydicom.dcmread(path)).Status for path in paths]
    association.release()
    return found


@pytest.fixture
def study(tmp_path):
    return slices(tmp_path / "sent", [0.0, 3.0, 6.0], StudyInstanceUID=generate_uid(), PatientName="ZZCANARY")


@pytest.fixture
def service(tmp_path):
    spool, port = Spool(tmp_path / "spool", 0.0), free_port()
    server = serve(spool, ["SCANNER"], "MADCLIP", ("127.0.0.1", port))
    yield spool, port
    server.shutdown()


class Reading:
    """Stands for a prediction: keeps what it was given, and writes one object."""

    def __init__(self):
        self.studies, self.runs = [], []

    def __call__(self, study, out, run):
        paths = sorted(study.glob("*.dcm"))
        self.runs.append(run)
        self.studies.append([pydicom.dcmread(path) for path in paths])
        (out / "dicom").mkdir(parents=True)
        (out / "dicom/000_seg.dcm").write_bytes(paths[0].read_bytes())


def test_a_study_is_predicted_once_and_sent(service, study):
    spool, port = service
    predict, sent = Reading(), []
    assert send(port, study) == [0, 0, 0]
    said = handle(spool, predict, sent.append)
    assert [line.partition(": ")[2] for line in said] == ["3 instances predicted, 1 objects to send", "sent"]
    (arrived,) = predict.studies
    originals = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, study)}
    for one in arrived:
        np.testing.assert_array_equal(one.pixel_array, originals[one.SOPInstanceUID].pixel_array)
    assert len(sent) == 1
    # The same again is not done again, also not by another process on the same folder.
    assert send(port, study) == [0, 0, 0]
    assert handle(Spool(spool.folder, 0.0), predict, sent.append) == []
    assert len(predict.studies) == 1
    # What is new is.
    changed = pydicom.dcmread(study[0])
    changed.PixelData = bytes(len(changed.PixelData))
    changed.save_as(study[0])
    assert send(port, study[:1]) == [0]
    assert len(handle(spool, predict, sent.append)) == 2
    assert len(predict.studies) == 2


def test_only_those_who_are_named_may_send(service, study):
    spool, port = service
    assert send(port, study, calling="SOMEBODY") == []
    assert send(port, study, called="OTHER") == []
    assert list((spool.folder / "incoming").iterdir()) == []


def test_a_study_is_complete_when_nothing_comes(tmp_path, study):
    spool = Spool(tmp_path / "spool", 5.0)
    for path in study:
        spool.take("1.2", path.name, path.read_bytes())
    assert spool.complete(time.time()) == []
    assert len(spool.complete(time.time() + 6)) == 1


def test_nothing_is_lost_when_a_process_ends_or_an_archive_is_away(tmp_path, study):
    spool, predict, sent = Spool(tmp_path / "spool", 0.0), Reading(), []
    for path in study:
        spool.take("1.2", path.name, path.read_bytes())

    def killed(study, out, run):
        out.mkdir(parents=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        handle(spool, killed, sent.append)

    def away(paths):
        raise DataError("127.0.0.1:1: does not take results")

    again = Spool(spool.folder, 0.0, retry=0.0)
    assert "not sent yet" in handle(again, predict, away)[-1]
    assert "not sent yet" in handle(again, predict, away)[-1]
    assert len(predict.studies) == 1
    assert handle(Spool(spool.folder, 0.0), predict, sent.append)[-1].endswith("sent")
    assert len(sent) == 1


def test_a_study_that_cannot_be_predicted_does_not_stop_the_next(tmp_path, study):
    spool = Spool(tmp_path / "spool", 0.0)
    for uid in ("1.2", "1.3"):
        spool.take(uid, study[0].name, study[0].read_bytes())
    calls = []

    def predict(folder, out, run):
        calls.append(folder)
        if len(calls) == 1:
            raise DataError(f"{folder}: no image")
        out.mkdir(parents=True)

    said = handle(spool, predict, lambda _: None)
    assert len(calls) == 2
    assert "could not be predicted" in said[0]
    assert not any("1.2" in line or "ZZCANARY" in line for line in said)


def test_a_study_that_failed_is_kept_and_tried_again_when_it_is_sent_again(tmp_path, study):
    spool, predict = Spool(tmp_path / "spool", 0.0), Reading()

    def refuse(folder, out, run):
        raise DataError(f"{folder}: no image")

    spool.take("1.2", "a", study[0].read_bytes())
    (said,) = handle(spool, refuse, lambda _: None)
    (failed,) = (spool.folder / "failed").iterdir()
    assert said.endswith(f"could not be predicted; see failed/{failed.name}")
    assert (failed / "failed.txt").read_text() == "the study: no image\n"
    assert [path.read_bytes() for path in failed.glob("*.dcm")] == [study[0].read_bytes()]
    spool.take("1.2", "a", study[0].read_bytes())
    assert "1 instances predicted" in handle(spool, predict, lambda _: None)[0]


def test_more_of_a_study_after_a_crash_is_a_run_of_its_own(tmp_path, study):
    spool, predict = Spool(tmp_path / "spool", 0.0), Reading()
    spool.take("1.2", "a", study[0].read_bytes())
    spool.complete(time.time())  # and the program ends before there are results
    spool.take("1.2", "b", study[1].read_bytes())
    assert len(handle(Spool(spool.folder, 0.0), predict, lambda _: None)) == 4
    assert [len(one) for one in predict.studies] == [1, 2]


def test_a_series_that_pauses_is_predicted_again_whole(tmp_path, study):
    spool, predict = Spool(tmp_path / "spool", 0.0), Reading()
    other = slices(tmp_path / "other", [0.0], SeriesInstanceUID=generate_uid())
    for path in (study[0], study[1], other[0]):
        spool.take("1.2", str(path), path.read_bytes())
    assert "3 instances predicted, 1" in handle(spool, predict, lambda _: None)[0]
    spool.take("1.2", str(study[2]), study[2].read_bytes())
    again = Spool(spool.folder, 0.0)  # also after a restart
    said = handle(again, predict, lambda _: None)[0]
    assert "-2: 1 instances predicted, with 2 of the same series that came before, 1 objects" in said
    uids = [{one.SOPInstanceUID for one in part} for part in predict.studies]
    assert uids[1] == {pydicom.dcmread(path).SOPInstanceUID for path in study}
    # A corrected instance takes the place of the one that came before; what is kept is kept for an hour.
    changed = pydicom.dcmread(study[0])
    changed.PixelData = bytes(len(changed.PixelData))
    changed.save_as(study[0])
    again.take("1.2", str(study[0]), study[0].read_bytes())
    handle(again, predict, lambda _: None)
    assert sorted(one.pixel_array.max() for one in predict.studies[2]) == [0, 11, 12]
    assert len(list((spool.folder / "kept").iterdir())) == 3
    again.complete(time.time() + listen.KEPT)
    assert not list((spool.folder / "kept").iterdir())
    # What comes later still is a part by itself, which replaces nothing.
    changed.PixelData = b"\1" * len(changed.PixelData)
    changed.save_as(study[0])
    again.take("1.2", str(study[0]), study[0].read_bytes())
    handle(again, predict, lambda _: None)
    assert predict.runs == [1, 2, 3, 1]


def test_what_is_no_fault_of_a_study_is_tried_again_but_not_for_ever(tmp_path, study):
    spool = Spool(tmp_path / "spool", 0.0, retry=0.0)
    spool.take("1.2", "a", study[0].read_bytes())
    ends = [OSError(28, "No space left on device"), MemoryError(), KeyboardInterrupt()]

    def fail(folder, out, run):
        raise ends[0]

    for _ in range(2):
        assert handle(spool, fail, lambda _: None)[0].endswith(f"{type(ends.pop(0)).__name__}; tried again later")
    with pytest.raises(KeyboardInterrupt):  # the third ends the program, as one that is killed
        handle(spool, fail, lambda _: None)
    again = Spool(spool.folder, 0.0)
    assert handle(again, fail, lambda _: None) == []  # not at once
    again.retry = 0.0
    assert "given up after 3 times" in handle(again, fail, lambda _: None)[0]
    assert handle(again, fail, lambda _: None) == []


def test_an_archive_that_is_away_is_not_asked_again_at_once(tmp_path, study):
    spool, asked = Spool(tmp_path / "spool", 0.0), []

    def away(paths):
        asked.append(paths)
        raise DataError("away")

    for uid in ("1.2", "1.3", "1.4"):
        spool.take(uid, uid, study[0].read_bytes())
    assert len(handle(spool, Reading(), away)) == 4  # three are predicted, and one of them was offered
    assert handle(spool, Reading(), away) == []
    spool.send_again = 0.0
    handle(spool, Reading(), away)
    assert len({paths[0].parent for paths in asked}) == 2  # the one that was refused is at the end of the queue


def test_results_of_ours_that_come_back_are_not_predicted(service, tmp_path, study):
    spool, port = service
    sources = headers_for([pydicom.dcmread(path) for path in study])
    origin, folder = Origin("ab" * 32, "1", 0.5), tmp_path / "ours"
    folder.mkdir()
    pictures = [picture(sources[0], np.zeros((12, 16, 3), np.uint8), origin), report(sources, FINDING, origin)]
    for number, one in enumerate(pictures):
        one.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    assert send(port, sorted(folder.iterdir())) == [0, 0]
    assert handle(spool, Reading(), lambda _: None) == []


FINDING = Finding(0.5, None, None, "No threshold.")


def test_an_instance_larger_than_any_ends_the_association(service, study, monkeypatch):
    spool, port = service
    monkeypatch.setattr(listen, "MAX_INSTANCE", 100_000)
    large = pydicom.dcmread(study[0])
    large.Rows = large.Columns = 1000
    large.PixelData = bytes(2_000_000)
    large.save_as(study[0])
    entity = AE(ae_title="SCANNER")
    entity.add_requested_context(large.SOPClassUID)
    association = entity.associate("127.0.0.1", port, ae_title="MADCLIP")
    assert "Status" not in association.send_c_store(large)  # no answer
    association.join(10)  # its thread ends when the other side has gone
    assert not association.is_established
    assert handle(spool, Reading(), lambda _: None) == []
    assert send(port, study[1:]) == [0, 0]


@pytest.mark.parametrize("answer", [0xB000, 0xB007])
def test_an_archive_that_prefers_another_syntax_or_warns_takes_results(study, answer):
    kept, port = [], free_port()
    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(CTImageStorage, [JPEG2000Lossless, ExplicitVRLittleEndian])
    handlers = [(evt.EVT_C_STORE, lambda event: kept.append(event.encoded_dataset(include_meta=False)) or answer)]
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        send_to(Peer.parse(f"127.0.0.1:{port}:ARCHIVE"), "MADCLIP", study)
    finally:
        server.shutdown()
    assert len(kept) == 3
    assert all(path.read_bytes().endswith(data) for path, data in zip(study, kept, strict=True))


def test_results_are_sent_by_c_store(tmp_path, study):
    kept, port = [], free_port()

    def keep(event):
        kept.append(event.dataset)
        return 0x0000 if len(kept) < 3 else 0xA700

    entity = AE(ae_title="ARCHIVE")
    entity.supported_contexts = AllStoragePresentationContexts
    peer = Peer.parse(f"127.0.0.1:{port}:ARCHIVE")
    with pytest.raises(DataError, match="does not take results"):
        send_to(peer, "MADCLIP", study[:2])
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        send_to(peer, "MADCLIP", study[:2])
        assert [one.SOPInstanceUID for one in kept] == [pydicom.dcmread(path).SOPInstanceUID for path in study[:2]]
        with pytest.raises(DataError, match="did not take a result"):
            send_to(peer, "MADCLIP", study[2:])
    finally:
        server.shutdown()


@pytest.mark.parametrize("text", ["", "host", "host:x:AE", "host:104:", "host:104:" + "A" * 17, "host:0:AE"])
def test_peers_that_are_none(text):
    with pytest.raises(RecipeError, match="HOST:PORT:AETITLE"):
        Peer.parse(text)


def test_who_may_send_must_be_named(tmp_path):
    spool = Spool(tmp_path / "spool", 1.0)
    with pytest.raises(RecipeError, match="may send"):
        serve(spool, [], "MADCLIP", ("127.0.0.1", free_port()))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DataError, match="cannot listen"):
            serve(spool, ["A"], "MADCLIP", taken.getsockname())


@contextmanager
def listening(detector, port, spool, peer, log):
    """`madclip listen` in a process of its own, which is killed at the end."""
    command = ["listen", detector, "--port", port, "--from", "ORTHANC", "--out", spool, "--to", peer, "--quiet", 1]
    options = ["--region", "0.01", "--device", "cpu"]
    program = [sys.executable, "-c", "from madclip.cli import main; main()"]
    with log.open("wb") as file:
        process = subprocess.Popen([*program, *map(str, [*command, *options])], stdout=file, stderr=file)
    try:
        until(lambda: b"listening at" in log.read_bytes())
        yield
    finally:
        process.kill()
        process.wait(20)


def until(true, seconds=90):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def test_an_archive_sends_a_study_and_gets_results(tmp_path, small_detector, archive_at, study):
    from dicomweb_client.api import DICOMwebClient

    rest, dimse = archive_at
    server, port, spool = f"http://127.0.0.1:{rest}", free_port(), tmp_path / "spool"
    scans = [pydicom.dcmread(path) for path in study]
    DICOMwebClient(f"{server}/dicom-web").store_instances(scans)

    def ask(path, body=None, method=None):
        data = None if body is None else body.encode()
        request = urllib.request.Request(f"{server}/{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"{}")

    (found,) = ask("tools/lookup", scans[0].StudyInstanceUID)
    ask("modalities/ours", json.dumps({"AET": "MADCLIP", "Host": "127.0.0.1", "Port": port}), "PUT")

    def series():
        return sorted(one["MainDicomTags"]["Modality"] for one in ask(f"studies/{found['ID']}/series"))

    for log in (tmp_path / "first", tmp_path / "second"):  # the process is killed between the two
        with listening(small_detector, port, spool, f"127.0.0.1:{dimse}:ORTHANC", log):
            ask("modalities/ours/store", json.dumps(ask(f"studies/{found['ID']}")["Series"]))
            until(lambda: series() == ["CT", "SEG", "SR"])
            until(lambda: not list((spool / "incoming").iterdir()) and not list((spool / "outgoing").iterdir()))
        assert len(list((spool / "results").iterdir())) == 1
        assert b"ZZCANARY" not in log.read_bytes()
        assert (b"3 instances predicted" in log.read_bytes()) == (log.name == "first")
    assert not list((spool / "failed").iterdir())
    assert not [path for path in spool.rglob("*") if "ZZCANARY" in path.name or scans[0].StudyInstanceUID in path.name]
