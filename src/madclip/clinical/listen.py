"""A DICOM storage service: a study arrives, is predicted when it is complete, and its results are sent on.

What arrived, what is predicted and what is still to be sent lies on disk, so that a restart goes on where it was:

    incoming/STUDY/INSTANCE.dcm    what arrives; STUDY and INSTANCE are digests
    working/STUDY-N/               a study that is complete, while it is predicted
    kept/STUDY-N/                  a study that was predicted, for an hour: more of a series may come
    outgoing/STUDY-N/              its results, until whoever is to have them has taken them
    results/STUDY-N/               its results
    failed/STUDY-N/                a study that could not be predicted, with the reason in failed.txt
    handled.jsonl                  digests of the instances of each study that was handled
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from madclip.data.series import MANUFACTURER
from madclip.errors import DataError, MadCLIPError, MissingExtraError, RecipeError
from madclip.files import new_file, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SUCCESS, FULL, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
"""Answers to C-STORE: taken, no room, no DICOM."""
TAKEN = (SUCCESS, 0xB000, 0xB006, 0xB007)
"""Answers to a C-STORE of ours that say that the object is kept, some with a warning."""
MAX_INSTANCE = 2**29
"""Bytes of an instance, which is held in memory while it arrives."""
RETRY = 60.0
"""Seconds until a study that failed for an outer reason, or whose results were not taken, is tried again."""
TRIES = 3
"""So often a study is begun that ends the program, or fails by what is no fault of its files."""
KEPT = 3600.0
"""Seconds that instances are kept after they were predicted, to be predicted again with what comes of their series."""
_FOLDERS = ("incoming", "working", "kept", "outgoing", "results", "failed")
_BEGUN = ".begun"
"""A byte for each time that a study was begun."""
_TITLE = re.compile(r"[ -\[\]-~]{1,16}")


@dataclass(frozen=True)
class Peer:
    """Another DICOM application.

    Attributes:
        host: Its name or address.
        port: Its port.
        title: Its AE title.
    """

    host: str
    port: int
    title: str

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Reads `HOST:PORT:TITLE`.

        Raises:
            RecipeError: It is none.
        """
        host, port, title = ([*text.rsplit(":", 2), "", ""])[:3]
        if not host or not port.isdecimal() or not 0 < int(port) < 65536 or not _TITLE.fullmatch(title):
            raise RecipeError(f"{text!r} is not HOST:PORT:AETITLE")
        return cls(host, int(port), title)


class Spool:
    """What arrived and what is to be done, on disk.

    Args:
        folder: Made where it is missing; only its owner may read it.
        quiet: Seconds without a new instance after which a study is complete.
        retry: Seconds as in `RETRY`.
    """

    def __init__(self, folder: Path, quiet: float, retry: float = RETRY) -> None:
        self.folder, self.quiet, self.retry = folder, quiet, retry
        for name in _FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._known = self._handled()
        self.send_again = 0.0

    def take(self, study: str, instance: str, *parts: bytes) -> None:
        """Keeps an instance that has arrived, in parts; one that is there already is replaced by itself."""
        with self._lock:
            folder = self.folder / "incoming" / _name(study)
            folder.mkdir(exist_ok=True, mode=0o700)
            with new_file(folder / f"{_name(instance)}.dcm", 0o600) as partial, partial.open("wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            os.utime(folder)

    def complete(self, now: float) -> list[Path]:
        """Moves studies to which nothing was added for a while to `working`; gives those and what is to be tried again.

        A study of which every instance was handled before is removed instead, and what was kept for long enough.
        """
        for folder in (self.folder / "kept").iterdir():
            if now - folder.stat().st_mtime >= KEPT:
                shutil.rmtree(folder)
        with self._lock:
            for folder in sorted((self.folder / "incoming").iterdir()):
                if now - folder.stat().st_mtime < self.quiet:
                    continue
                if _instances(folder) <= self._known.get(folder.name, set()):
                    shutil.rmtree(folder)
                    continue
                folder.rename(self.folder / "working" / self._free_name(folder.name))
        return [study for study in sorted((self.folder / "working").iterdir()) if self._is_due(study, now)]

    def _free_name(self, study: str) -> str:
        """A name that no other part of the study has, wherever it is."""
        taken = {path.name for name in _FOLDERS for path in (self.folder / name).glob(f"{study}-*")}
        return next(name for number in count(1) if (name := f"{study}-{number}") not in taken)

    def _is_due(self, study: Path, now: float) -> bool:
        tries = study / _BEGUN
        return not tries.is_file() or now - tries.stat().st_mtime >= self.retry

    def begin(self, study: Path) -> int:
        """Notes that a study is begun; says how often it was, this time included: a crash is counted like this."""
        with (study / _BEGUN).open("ab") as file:
            file.write(b".")
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def rejoin(self, study: Path) -> int:
        """Copies to a study what was predicted before of the same series, so that they are whole; says how many."""
        name, run = study.name.rpartition("-")[0], run_of(study)
        wanted = {_series(path) for path in study.glob("*.dcm")} - {""}
        parts = sorted((self.folder / "kept").glob(f"{name}-*"), key=run_of)
        latest = {path.name: path for part in parts if run_of(part) < run for path in sorted(part.glob("*.dcm"))}
        again = [path for path in latest.values() if _series(path) in wanted]
        for path in again:
            if not (study / path.name).exists():
                with new_file(study / path.name, 0o600) as partial:
                    shutil.copy(path, partial)
        return len(again)

    def fail(self, study: Path, reason: str) -> None:
        """Puts a study aside; it is not known as handled, so that it is tried anew when it is sent again."""
        write_whole(study / "failed.txt", f"{reason}\n", 0o600)
        study.rename(self.folder / "failed" / study.name)

    def done(self, study: Path) -> None:
        """Puts a study whose results are on disk aside for a while, and keeps the digests of its instances for good."""
        name, instances = study.name.rpartition("-")[0], _instances(study)
        with (self.folder / "handled.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"study": name, "instances": sorted(instances)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._known.setdefault(name, set()).update(instances)
        (study / _BEGUN).unlink(missing_ok=True)
        os.utime(study)
        study.rename(self.folder / "kept" / study.name)

    def _handled(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        path = self.folder / "handled.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:  # the machine stopped while this was written: the study is handled again
                continue
            found.setdefault(row["study"], set()).update(row["instances"])
        return found


def serve(spool: Spool, titles: Sequence[str], title: str, address: tuple[str, int]) -> Any:
    """Starts the storage service in threads of its own; its `shutdown()` ends it.

    Args:
        spool: Where instances go.
        titles: The AE titles that may send; others are refused.
        title: Our AE title; who calls another one is refused.
        address: Host and port to listen at.

    Raises:
        RecipeError: A title is none.
        DataError: Nobody can listen there.
        MissingExtraError: pynetdicom is not installed.
    """
    try:
        from pynetdicom import AE, AllStoragePresentationContexts, evt
        from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
    except ImportError:
        raise MissingExtraError.of("A DICOM service", "dicom") from None
    for one in (title, *titles):
        if not _TITLE.fullmatch(one):
            raise RecipeError(f"{one!r} is no AE title: 1 to 16 characters of ASCII without a backslash")
    if not titles:
        raise RecipeError("name the AE titles that may send")
    entity: Any = AE(ae_title=title)
    entity.require_called_aet, entity.require_calling_aet = True, list(titles)
    entity.maximum_associations = 4
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax, _syntaxes())
    entity.add_supported_context(Verification)
    handlers = [(evt.EVT_C_STORE, _stored, [spool]), (evt.EVT_DATA_RECV, _arriving)]
    try:
        return entity.start_server(address, block=False, evt_handlers=handlers)
    except OSError as error:
        raise DataError(f"{address[0]}:{address[1]}: cannot listen there ({error.strerror or error})") from None


def _stored(event: Any, spool: Spool) -> int:
    """The answer to one C-STORE, given when the instance is safely on disk.

    Results of ours that an archive sends on to us are taken and forgotten: to predict them would never end.
    """
    from pynetdicom.dsutils import encode_file_meta

    from madclip.data.readers.dicom import unreadable

    event.assoc.arrived = 0
    try:
        data = event.request.DataSet.getvalue()
        head = b"\0" * 128 + b"DICM" + encode_file_meta(event.file_meta)
        study, instance = str(event.dataset.StudyInstanceUID), str(event.request.AffectedSOPInstanceUID)
        ours = event.dataset.get("Manufacturer") == MANUFACTURER
    except unreadable():
        return NOT_UNDERSTOOD
    if ours:
        return SUCCESS
    try:
        spool.take(study, instance, head, data)
    except OSError:
        return FULL
    return SUCCESS


def _arriving(event: Any) -> None:
    """Ends an association whose instance is larger than any is taken, before it fills the memory."""
    event.assoc.arrived = getattr(event.assoc, "arrived", 0) + len(event.data)
    if event.assoc.arrived > MAX_INSTANCE:
        event.assoc.abort()


def handle(
    spool: Spool, predict: Callable[[Path, Path, int], None], send: Callable[[Sequence[Path]], None]
) -> list[str]:
    """Predicts the studies that are complete and sends what is to be sent; gives a line for each, without names.

    Args:
        spool: What arrived.
        predict: Predicts the folder of a study into another folder; is told how often the study was predicted, this
            time included, where series of it are predicted again whole, and else 1.
        send: Sends DICOM objects on; it raises where they are not taken, and is asked again later.
    """
    said = [_predicted(spool, study, predict) for study in spool.complete(time.time())]
    return said + _sent(spool, send)


def _predicted(spool: Spool, study: Path, predict: Callable[[Path, Path, int], None]) -> str:
    """Predicts one study, or puts it aside; says which in a line."""
    name, came = study.name, len(_instances(study))
    out, waiting = spool.folder / "results" / name, spool.folder / "outgoing" / name
    tries = spool.begin(study)
    if tries > TRIES:
        spool.fail(study, f"begun {TRIES} times, and ended the program or failed each time")
        return f"study {name}: {came} instances, given up after {TRIES} times; see failed/{name}"
    try:
        shutil.rmtree(out, ignore_errors=True)  # of a run that was killed
        again = spool.rejoin(study)
        predict(study, out, run_of(study) if again else 1)
        objects = sorted((out / "dicom").glob("*.dcm"))
        if objects:
            shutil.rmtree(waiting, ignore_errors=True)
            waiting.mkdir(mode=0o700)
            for path in objects:
                shutil.copy(path, waiting)
    except MadCLIPError as error:
        spool.fail(study, str(error).replace(str(study), "the study"))
        return f"study {name}: {came} instances, could not be predicted; see failed/{name}"
    except Exception as error:  # noqa: BLE001  (a full disk or a fault of ours: the next study is not held up by it)
        return f"study {name}: {came} instances, {type(error).__name__}; tried again later"
    spool.done(study)
    earlier = f", with {again} of the same series that came before" if again else ""
    return f"study {name}: {came} instances predicted{earlier}, {len(objects)} objects to send"


def _sent(spool: Spool, send: Callable[[Sequence[Path]], None]) -> list[str]:
    """Sends what waits, the oldest first; what is not taken goes to the end, and all wait a while with it."""
    said: list[str] = []
    if time.monotonic() < spool.send_again:
        return said
    for waiting in sorted((spool.folder / "outgoing").iterdir(), key=lambda path: path.stat().st_mtime):
        try:
            send(sorted(waiting.glob("*.dcm")))
        except MadCLIPError as error:
            os.utime(waiting)
            spool.send_again = time.monotonic() + spool.retry
            return [*said, f"study {waiting.name}: not sent yet: {error}"]
        shutil.rmtree(waiting)
        said.append(f"study {waiting.name}: sent")
    return said


def send_to(peer: Peer, title: str, paths: Sequence[Path]) -> None:
    """Sends DICOM objects by C-STORE, each in the syntax of its file.

    Raises:
        DataError: The peer does not answer, refuses, or does not take one of them.
    """
    from pydicom import dcmread
    from pynetdicom import AE

    sources = [dcmread(path) for path in paths]
    entity: Any = AE(ae_title=title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = 60
    for kind, syntax in {(str(one.SOPClassUID), str(one.file_meta.TransferSyntaxUID)) for one in sources}:
        entity.add_requested_context(kind, syntax)
    called = f"{peer.host}:{peer.port}"
    association = entity.associate(peer.host, peer.port, ae_title=peer.title)
    if not association.is_established:
        raise DataError(f"{called}: does not take results (no association)")
    try:
        for source in sources:
            status = association.send_c_store(source)
            if not status or status.Status not in TAKEN:
                raise DataError(f"{called}: did not take a result")
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{called}: did not take a result ({type(error).__name__})") from None
    finally:
        association.release()


def _syntaxes() -> list[str]:
    from pydicom.uid import DeflatedExplicitVRLittleEndian
    from pynetdicom import ALL_TRANSFER_SYNTAXES

    return [str(syntax) for syntax in ALL_TRANSFER_SYNTAXES if syntax != DeflatedExplicitVRLittleEndian]


def _instances(folder: Path) -> set[str]:
    """What a study holds: its instances' names and contents."""
    found = set()
    for path in folder.glob("*.dcm"):
        with path.open("rb") as file:
            found.add(f"{path.stem} {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}")
    return found


def run_of(study: Path) -> int:
    """The number of a part of a study, from 1."""
    return int(study.name.rpartition("-")[2])


def _series(path: Path) -> str:
    """The UID of the series that an instance is of; empty where its header cannot be read."""
    from madclip.data.readers.dicom import read_header

    try:
        return str(read_header(path).get("SeriesInstanceUID") or "")
    except DataError:
        return ""


def _name(uid: str) -> str:
    """A name on disk that no UID from outside can steer."""
    return hashlib.sha256(uid.encode()).hexdigest()[:24]
