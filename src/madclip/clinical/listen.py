"""A DICOM storage service: a study arrives, is predicted when it is complete, and its results are sent on.

What arrived, what is predicted and what is still to be sent lies on disk, so that a restart goes on where it was:

    incoming/STUDY/INSTANCE.dcm    what arrives; STUDY and INSTANCE are digests
    working/STUDY-N/               a study that is complete, while it is predicted
    outgoing/STUDY-N/              its results, until whoever is to have them has taken them
    results/STUDY-N/               its results
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
from typing import TYPE_CHECKING, Any

from madclip.errors import DataError, MadCLIPError, MissingExtraError, RecipeError
from madclip.files import new_file, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SUCCESS, FULL, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
"""Answers to C-STORE: taken, no room, no DICOM."""
MAX_INSTANCE = 2**30
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
    """

    def __init__(self, folder: Path, quiet: float) -> None:
        self.folder, self.quiet = folder, quiet
        for name in ("incoming", "working", "outgoing", "results"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()

    def take(self, study: str, instance: str, content: bytes) -> None:
        """Keeps an instance that has arrived; one that is there already is replaced by itself."""
        with self._lock:
            folder = self.folder / "incoming" / _name(study)
            folder.mkdir(exist_ok=True, mode=0o700)
            with new_file(folder / f"{_name(instance)}.dcm", 0o600) as partial, partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.utime(folder)

    def complete(self, now: float) -> list[Path]:
        """Moves studies to which nothing was added for a while to `working`; gives those and what was left there.

        A study of which every instance was handled before is removed instead.
        """
        with self._lock:
            known = self._handled()
            for folder in sorted((self.folder / "incoming").iterdir()):
                if now - folder.stat().st_mtime < self.quiet:
                    continue
                if _instances(folder) <= known.get(folder.name, set()):
                    shutil.rmtree(folder)
                    continue
                number = 1 + sum(1 for _ in (self.folder / "results").glob(f"{folder.name}-*"))
                folder.rename(self.folder / "working" / f"{folder.name}-{number}")
        return sorted((self.folder / "working").iterdir())

    def done(self, study: Path) -> None:
        """Forgets a study whose results are on disk, but for the digests of its instances."""
        line = json.dumps({"study": study.name.rpartition("-")[0], "instances": sorted(_instances(study))})
        with (self.folder / "handled.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(study)

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
    try:
        return entity.start_server(address, block=False, evt_handlers=[(evt.EVT_C_STORE, _stored, [spool])])
    except OSError as error:
        raise DataError(f"{address[0]}:{address[1]}: cannot listen there ({error.strerror or error})") from None


def _stored(event: Any, spool: Spool) -> int:
    """The answer to one C-STORE, given when the instance is safely on disk."""
    from madclip.data.readers.dicom import unreadable

    if event.request.DataSet.getbuffer().nbytes > MAX_INSTANCE:
        return FULL
    try:
        content = event.encoded_dataset()
        study, instance = str(event.dataset.StudyInstanceUID), str(event.request.AffectedSOPInstanceUID)
    except unreadable():
        return NOT_UNDERSTOOD
    try:
        spool.take(study, instance, content)
    except OSError:
        return FULL
    return SUCCESS


def handle(spool: Spool, predict: Callable[[Path, Path], None], send: Callable[[Sequence[Path]], None]) -> list[str]:
    """Predicts the studies that are complete and sends what is to be sent; gives a line for each, without names.

    Args:
        spool: What arrived.
        predict: Predicts the folder of a study into another folder.
        send: Sends DICOM objects on; it raises where they are not taken, and is asked again later.
    """
    said = []
    for study in spool.complete(time.time()):
        out = spool.folder / "results" / study.name
        count = len(_instances(study))
        try:
            shutil.rmtree(out, ignore_errors=True)  # of a run that was killed
            predict(study, out)
        except MadCLIPError as error:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(out / "failed.txt", f"{str(error).replace(str(study), 'the study')}\n", 0o600)
            said.append(f"study {study.name}: {count} instances, could not be predicted")
        else:
            objects = sorted((out / "dicom").glob("*.dcm"))
            waiting = spool.folder / "outgoing" / study.name
            if objects:
                shutil.rmtree(waiting, ignore_errors=True)
                shutil.copytree(out / "dicom", waiting)
            said.append(f"study {study.name}: {count} instances predicted, {len(objects)} objects to send")
        spool.done(study)
    for waiting in sorted((spool.folder / "outgoing").iterdir()):
        try:
            send(sorted(waiting.glob("*.dcm")))
        except MadCLIPError as error:
            said.append(f"study {waiting.name}: not sent yet: {error}")
            continue
        shutil.rmtree(waiting)
        said.append(f"study {waiting.name}: sent")
    return said


def send_to(peer: Peer, title: str, paths: Sequence[Path]) -> None:
    """Sends DICOM objects by C-STORE.

    Raises:
        DataError: The peer does not answer, refuses, or does not take one of them.
    """
    from pydicom import dcmread
    from pynetdicom import AE

    sources = [dcmread(path) for path in paths]
    entity: Any = AE(ae_title=title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = 60
    for uid in {str(source.SOPClassUID) for source in sources}:
        entity.add_requested_context(uid, _syntaxes())
    called = f"{peer.host}:{peer.port}"
    association = entity.associate(peer.host, peer.port, ae_title=peer.title)
    if not association.is_established:
        raise DataError(f"{called}: does not take results (no association)")
    try:
        for source in sources:
            status = association.send_c_store(source)
            if not status or status.Status != SUCCESS:
                raise DataError(f"{called}: did not take a result")
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{called}: did not take a result ({type(error).__name__})") from None
    finally:
        association.release()


def _syntaxes() -> list[str]:
    from pynetdicom import ALL_TRANSFER_SYNTAXES

    return [str(syntax) for syntax in ALL_TRANSFER_SYNTAXES]


def _instances(folder: Path) -> set[str]:
    """What a study holds: its instances' names and contents."""
    found = set()
    for path in folder.glob("*.dcm"):
        with path.open("rb") as file:
            found.add(f"{path.stem} {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}")
    return found


def _name(uid: str) -> str:
    """A name on disk that no UID from outside can steer."""
    return hashlib.sha256(uid.encode()).hexdigest()[:24]
