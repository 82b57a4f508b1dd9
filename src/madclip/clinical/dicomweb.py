"""Studies from an archive that speaks DICOMweb, and results back into it."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from madclip.errors import DataError, MissingExtraError
from madclip.files import new_file
from madclip.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SCHEME = "dicomweb+"
MAX_BYTES, MAX_INSTANCES = 20 * 2**30, 20_000
"""A study of more is not fetched."""
MAX_INSTANCE, MAX_ANSWER = 2**29, 2**26
"""Bytes of one instance, and of any other answer, which are held in memory."""
TIMEOUT = (10.0, 120.0)
"""Seconds to wait for a connection, and for the next bytes."""
SLOWEST, PATIENCE = 1000.0, 60.0
"""Bytes a second that an answer must come with on average, once it has taken so many seconds."""
_PIECE = 2**16
_AS_STORED = (("application/dicom", "*"),)
"""In whatever syntax it is kept: some archives answer 500 to who wants what is compressed in another."""
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
        try:
            parts = urlsplit(text.removeprefix(SCHEME))
        except ValueError:
            raise DataError(f"{_shown(text)}: not of the form {SCHEME}https://HOST/dicom-web/studies/UID") from None
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
    client, watch = _client(address.root)
    with _told(address.root):
        expected = len(client.search_for_instances(address.study, address.series, limit=MAX_INSTANCES + 1))
        if not 0 < expected <= MAX_INSTANCES:
            raise DataError(f"{address.root}: has {'no' if not expected else 'too many'} instances of this study")
        if address.series:
            instances = client.iter_series(address.study, address.series, media_types=_AS_STORED)
        else:
            instances = client.iter_study(address.study, media_types=_AS_STORED)
        folder.mkdir(parents=True, exist_ok=True)
        watch.expect(MAX_INSTANCE)
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
            watch.expect(MAX_INSTANCE)
    if len(paths) != expected:
        raise DataError(f"{address.root}: sent {len(paths)} of {expected} instances; try again")
    return paths


def store(root: str, paths: Iterable[Path]) -> int:
    """Stores DICOM files in an archive; gives their number.

    Raises:
        DataError: The archive does not answer, or does not take them all.
    """
    from pydicom import dcmread

    client, watch = _client(root)
    count = 0
    with _told(root):
        for path in paths:
            watch.expect(MAX_ANSWER)
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


class _Watch:
    """Ends an answer while it arrives that is larger than its kind can be, or so slow that it has no end."""

    def __init__(self, root: str) -> None:
        self.root, self.left = root, MAX_ANSWER

    def expect(self, most: int) -> None:
        """Begins to count anew: so many bytes may come, inflated where they are compressed."""
        self.left = most

    def __call__(self, response: Any, **_: Any) -> None:
        """What requests calls for each answer before its body is read."""

        def pieces(_: int | None = None, *, decode_content: bool = True) -> Iterator[bytes]:
            begun, came = time.monotonic(), 0
            # As it comes: a read of a given size waits for all of it, however slowly that is.
            while piece := response.raw.read1(_PIECE, decode_content=decode_content):
                self.left -= len(piece)
                came += len(piece)
                seconds = time.monotonic() - begun
                if self.left < 0:
                    response.close()
                    raise DataError(f"{self.root}: sends more than is fetched at once")
                if seconds > PATIENCE and came < SLOWEST * seconds:
                    response.close()
                    raise DataError(
                        f"{self.root}: sends {came} bytes in {seconds:.0f} s, which is too slow to wait for"
                    )
                yield piece

        response.raw.stream = pieces


def _client(root: str) -> tuple[Any, _Watch]:
    try:
        import requests
        from dicomweb_client.api import DICOMwebClient
        from requests.adapters import HTTPAdapter
    except ImportError:
        raise MissingExtraError.of("DICOMweb", "dicom") from None
    from madclip.data.readers.dicom import import_pydicom

    import_pydicom()
    logging.getLogger("retrying").setLevel(logging.CRITICAL)  # it prints errors, with addresses, before we say them
    authority = os.environ.get(_CA)
    if authority and not Path(authority).exists():
        raise DataError(f"{_CA} names a file that does not exist: {authority}")
    fixed = {"timeout": TIMEOUT} | ({"verify": authority} if authority else {})

    class Fixed(HTTPAdapter):
        """Never waits without end, and trusts whom it is told to, where requests prefers REQUESTS_CA_BUNDLE."""

        def send(self, request: Any, **options: Any) -> Any:  # type: ignore[override]
            return super().send(request, **options | fixed)

    session, watch = requests.Session(), _Watch(root)
    for scheme in ("http://", "https://"):
        session.mount(scheme, Fixed(max_retries=0))
    session.hooks["response"].append(watch)
    session.auth = _signed(root)
    client = DICOMwebClient(root, session=session)
    client.set_http_retry_params(retry=False)
    return client, watch


def _signed(root: str) -> Any:
    """How requests are signed: by token, by name and password, else (None) by netrc; not where others can listen.

    Raises:
        DataError: There are credentials for an archive to which others can listen.
    """
    token, user = os.environ.get(_TOKEN), os.environ.get(_USER)
    safe = _safe(root)
    if (token or user) and not safe:
        raise DataError(f"{root}: credentials are sent over https only")

    def sign(request: Any) -> Any:
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    if token or not safe:
        return sign  # with something to sign, requests does not look into netrc
    return (user, os.environ.get(_PASSWORD, "")) if user else None


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
