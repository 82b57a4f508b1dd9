"""Studies from an archive that speaks DICOMweb, and results back into it."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from madclip.errors import DataError, MissingExtraError
from madclip.files import new_file
from madclip.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SCHEME = "dicomweb+"
MAX_BYTES, MAX_INSTANCES = 20 * 2**30, 20_000
"""A study of more is not fetched."""
TIMEOUT = (10.0, 120.0)
"""Seconds to wait for a connection, and for the next bytes."""
_PATH = re.compile(r"(?P<root>/.*?)?/studies/(?P<study>[0-9.]{1,64})(?:/series/(?P<series>[0-9.]{1,64}))?/?")
_USER, _PASSWORD, _TOKEN, _CA = (f"MADCLIP_DICOMWEB_{name}" for name in ("USER", "PASSWORD", "TOKEN", "CA"))


@dataclass(frozen=True)
class Address:
    """A study, or a series of it, in an archive.

    Attributes:
        root: Where DICOMweb begins, such as `https://host/dicom-web`.
        study: UID of the study.
        series: UID of the series; None for the whole study.
    """

    root: str
    study: str
    series: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads `dicomweb+https://HOST/ROOT/studies/UID`, with `/series/UID` behind it where one series is meant.

        Raises:
            DataError: It is none, or holds credentials, which belong into the environment.
        """
        parts = urlsplit(text.removeprefix(SCHEME))
        match = _PATH.fullmatch(parts.path)
        if not text.startswith(SCHEME) or parts.scheme not in ("http", "https") or not parts.hostname or not match:
            raise DataError(f"{_shown(text)}: not of the form {SCHEME}https://HOST/dicom-web/studies/UID")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise DataError(
                f"{_shown(text)}: an address with credentials or a query; give {_USER} and {_PASSWORD}, {_TOKEN}, or a "
                "netrc file"
            )
        return cls(f"{parts.scheme}://{parts.netloc}{match['root'] or ''}", match["study"], match["series"])


def fetch(address: Address, folder: Path, progress: Progress = silent) -> list[Path]:
    """Fetches the instances of a study into files that are numbered, all of them or none.

    Args:
        address: What to fetch.
        folder: New or empty.
        progress: Told of the stage `fetch`.

    Raises:
        DataError: The archive does not answer, refuses, answers half, or holds more than is fetched.
    """
    client = _client(address.root)
    with _told(address.root):
        expected = len(client.search_for_instances(address.study, address.series, limit=MAX_INSTANCES + 1))
        if not 0 < expected <= MAX_INSTANCES:
            raise DataError(f"{address.root}: has {'no' if not expected else 'too many'} instances of this study")
        if address.series:
            instances = client.iter_series(address.study, address.series)
        else:
            instances = client.iter_study(address.study)
        folder.mkdir(parents=True, exist_ok=True)
        paths, total = [], 0
        for number, instance in enumerate(instances):
            path = folder / f"{number:06d}.dcm"
            with new_file(path, 0o600) as partial:
                instance.save_as(partial, enforce_file_format=True)
            paths.append(path)
            total += path.stat().st_size
            if total > MAX_BYTES or number >= expected:
                raise DataError(f"{address.root}: sends more than it listed, or than is fetched of one study")
            progress("fetch", number + 1, expected)
    if len(paths) != expected:
        raise DataError(f"{address.root}: sent {len(paths)} of {expected} instances; try again")
    return paths


def store(root: str, paths: Iterable[Path]) -> int:
    """Stores DICOM files in an archive; gives their number.

    Raises:
        DataError: The archive does not answer, or does not take them all.
    """
    from pydicom import dcmread

    client = _client(root)
    count = 0
    with _told(root):
        for path in paths:
            answer = client.store_instances([dcmread(path)])
            if answer.get("FailedSOPSequence"):
                raise DataError(f"{root}: did not take {path.name}")
            count += 1
    return count


class _told:  # noqa: N801  (reads as a statement)
    """Turns what goes wrong on the way into one line, without what an archive or a header says."""

    def __init__(self, root: str) -> None:
        self.root = root

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        import requests

        from madclip.data.readers.dicom import unreadable

        if isinstance(error, requests.HTTPError):
            status = error.response.status_code if error.response is not None else "an error"
            hint = f"; give {_USER} and {_PASSWORD}, or {_TOKEN}" if status in (401, 403) else ""
            raise DataError(f"{self.root}: the archive answers {status}{hint}") from None
        if isinstance(error, requests.Timeout):
            raise DataError(f"{self.root}: the archive does not answer in time") from None
        if isinstance(error, requests.RequestException):
            raise DataError(f"{self.root}: cannot be reached ({type(error).__name__})") from None
        if isinstance(error, unreadable()):
            raise DataError(f"{self.root}: what the archive sent is not DICOM ({type(error).__name__})") from None


def _client(root: str) -> Any:
    try:
        import requests
        from dicomweb_client.api import DICOMwebClient
        from requests.adapters import HTTPAdapter
    except ImportError:
        raise MissingExtraError.of("DICOMweb", "dicom") from None
    from madclip.data.readers.dicom import import_pydicom

    import_pydicom()

    class Timed(HTTPAdapter):
        """Never waits without end."""

        def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]
            return super().send(request, **options | {"timeout": TIMEOUT})

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, Timed(max_retries=0))
    session.verify = os.environ.get(_CA) or True
    token, user = os.environ.get(_TOKEN), os.environ.get(_USER)
    if (token or user) and not _safe(root):
        raise DataError(f"{root}: credentials are sent over https only")
    if token:
        session.headers["Authorization"] = f"Bearer {token}"
    elif user:
        session.auth = (user, os.environ.get(_PASSWORD, ""))
    client = DICOMwebClient(root, session=session)
    client.set_http_retry_params(retry=False)
    return client


def _safe(root: str) -> bool:
    """Whether nobody else can listen: encrypted, or on this machine."""
    parts = urlsplit(root)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _shown(text: str) -> str:
    """An address without what may be a password."""
    return re.sub(r"//[^/@]*@", "//...@", text)
