"""The storage service: what arrives is predicted once and sent on, whoever is away meanwhile."""

import socket
import time

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt

from data.scanner import slices
from madclip.clinical.listen import Peer, Spool, handle, send_to, serve
from madclip.errors import DataError, RecipeError


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


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
        self.studies = []

    def __call__(self, study, out):
        paths = sorted(study.glob("*.dcm"))
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

    def killed(study, out):
        out.mkdir(parents=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        handle(spool, killed, sent.append)

    def away(paths):
        raise DataError("127.0.0.1:1: does not take results")

    again = Spool(spool.folder, 0.0)
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

    def predict(folder, out):
        calls.append(folder)
        if len(calls) == 1:
            raise DataError(f"{folder}: no image")
        out.mkdir(parents=True)

    said = handle(spool, predict, lambda _: None)
    assert len(calls) == 2
    assert "could not be predicted" in said[0]
    assert not any("1.2" in line or "ZZCANARY" in line for line in said)


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
