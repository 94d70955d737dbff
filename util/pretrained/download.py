"""Downloads that go on after a break and are checked before they get their final name."""

import hashlib
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from util.runtime.errors import UserError

TIMEOUT = 30  # seconds without an answer
_CHUNK = 1 << 20
_COMPLETE = 416  # HTTP: the file has nothing beyond what is there


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(url: str, path: str | Path, sha256: str) -> None:
    """Download `url` to `path`, with a progress bar.

    What has come stands in PATH.part until all is there; the next call goes on from it.

    Args:
        url: of the file.
        path: where it goes; must not exist.
        sha256: how the SHA-256 of the whole begins, in hex.

    Raises:
        UserError: the server cannot be reached or breaks off, or what came is not the file; that is
            removed.
        OSError: the file cannot be written.
    """
    part = Path(f"{path}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    _fetch(url, part)
    found = file_sha256(part)
    if not found.startswith(sha256):
        part.unlink()
        raise UserError(
            f"{url}: what came is not the file: its sha256 begins {found[: len(sha256)]}, not "
            f"{sha256}; it was removed, so the same command starts anew"
        )
    os.replace(part, path)


def _fetch(url: str, part: Path) -> None:
    """Bring all of `url` into the file `part`, which may hold its beginning."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with _open(request, part.with_suffix("")) as answer:
            # A server that knows no ranges sends the whole.
            start = start if answer.status == 206 else 0
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length else None
            _receive(answer, part, start, total)
    except urllib.error.HTTPError as error:
        if error.code != _COMPLETE:
            raise UserError(f"{url}: the server says {error.code} {error.reason}") from error


def _open(request: urllib.request.Request, path: Path):
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError:
        raise
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        host = urlsplit(request.full_url).hostname
        raise UserError(
            f"cannot reach {host}: {getattr(reason, 'strerror', None) or reason}; without a network, "
            f"bring {request.full_url} here as {path}"
        ) from error


def _receive(answer, part: Path, start: int, total: int | None) -> None:
    with (
        open(part, "ab" if start else "wb") as file,
        tqdm(
            desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, disable=None
        ) as bar,
    ):
        have = start
        while chunk := _read(answer):
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
    if total is not None and have < total:
        raise UserError(
            f"{answer.url}: broke off after {have:,} of {total:,} bytes; the same command goes on"
        )


def _read(answer) -> bytes:
    """The next bytes; none at the end and where the connection breaks."""
    try:
        return answer.read1(_CHUNK)
    except (OSError, HTTPException):
        return b""
