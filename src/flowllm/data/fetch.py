"""Download of a file over HTTP that resumes an interrupted attempt."""

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

from flowllm import __version__
from flowllm.config.sections.base import has_credentials
from flowllm.errors import FlowllmError, PassingError
from flowllm.plain_text import redacted
from flowllm.runtime.log import Progress, log

ATTEMPTS = 3
"""Consecutive attempts without a new byte after which a fetch fails."""

PAUSE_SECONDS = 2.0
"""Pause before the second attempt; it doubles for every further attempt."""

TIMEOUT_SECONDS = 60.0
"""Longest time without an answer from the server."""

BLOCK_BYTES = 1 << 18

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class _BrokenOffError(Exception):
    """A transfer that another attempt may complete."""


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """A handler that follows redirects only to addresses that `check_url` accepts."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_url(url: str) -> None:
    """Refuse an address that is not https; http is accepted for servers on this machine.

    Raises:
        FlowllmError: the address has another scheme, no host, or a password. The message contains
            neither a password nor a query.
    """
    if has_credentials(url):
        raise FlowllmError(
            "data.url contains a user name or password, which would be recorded; use an "
            "address without, or fetch the files yourself and set data.source to their folder"
        )
    parts = urllib.parse.urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in _LOCAL_HOSTS
    if not parts.hostname or not (parts.scheme == "https" or local):
        raise FlowllmError(
            f"data.url {redacted(url)!r}: expected https://..., "
            "or http:// on localhost or 127.0.0.1"
        )


def fetch(url: str, part: Path) -> None:
    """Fetch a URL into `part`, appending to what an earlier attempt received.

    The standard proxy variables (`https_proxy`, `no_proxy`, ...) are used. The received bytes stay
    in `part` when this raises.

    Args:
        url: https address, or http on this machine.
        part: file that receives the bytes; it is complete when this returns, but not checked.

    Raises:
        FlowllmError: the address is refused, the server answers with an error, or repeated
            attempts receive nothing new.
    """
    check_url(url)
    # `check_url` refuses addresses of the handlers file:, ftp: and data:.
    opener = urllib.request.build_opener(_CheckedRedirects)
    reason = ""
    failures = received = 0
    while failures < ATTEMPTS:
        if failures:
            log.warning("%s", redacted(f"{url}: {reason}, retrying"))
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))
        try:
            _receive(opener, url, part)
            return
        except urllib.error.HTTPError as error:
            reason = f"the server answered {error.code} {error.reason}"
            if error.code < 500 and error.code != http.client.TOO_MANY_REQUESTS:
                break
        except urllib.error.URLError as error:
            reason = f"cannot be reached ({error.reason})"
        except (_BrokenOffError, OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        size = part.stat().st_size if part.exists() else 0
        failures = 1 if size > received else failures + 1
        received = max(received, size)
    raise PassingError(redacted(_gave_up(url, reason, part)))


def _gave_up(url: str, reason: str, part: Path) -> str:
    size = part.stat().st_size if part.exists() else 0
    kept = f"{size} bytes are kept and the next run resumes from there. " if size else ""
    return (
        f"{url}: {reason}. {kept}Run again, or set data.url to a mirror, "
        "or fetch the files yourself and set data.source to their folder."
    )


def _receive(opener: urllib.request.OpenerDirector, url: str, part: Path) -> None:
    """Make one request and append the answer to `part`."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"flowllm/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (checked by the caller)
    try:
        response = opener.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if have and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            _nothing_left(error.headers, have, part)
            return
        raise
    with response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        if resumed and _range_start(response.headers) != have:
            part.unlink(missing_ok=True)
            raise _BrokenOffError("the server sent another range than requested")
        start = have if resumed else 0
        total = _total_bytes(response.headers, start)
        _write(response, part, start, total)


def _write(response: Any, part: Path, start: int, total: int | None) -> None:
    """Write the body of a response into `part` from byte `start` on, with progress."""
    progress = Progress(f"download {part.stem}, bytes", total, done=start) if total else None
    received = start
    with part.open("ab" if start else "wb") as handle:
        while block := response.read1(BLOCK_BYTES):
            handle.write(block)
            received += len(block)
            if progress is not None:
                progress.advance(len(block))
    if total is not None and received != total:
        raise _BrokenOffError(f"the transfer ended after {received} of {total} bytes")


def _nothing_left(headers: Message, have: int, part: Path) -> None:
    """Handle the answer that no byte follows `have`: the file is complete, or it is another one."""
    if headers.get("Content-Range") == f"bytes */{have}":
        return
    part.unlink()
    raise _BrokenOffError("the bytes received before are of another file, starting again")


def _range_start(headers: Message) -> int | None:
    """Return START of `Content-Range: bytes START-END/TOTAL`, None where it is missing."""
    unit, _, rest = headers.get("Content-Range", "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdecimal() else None


def _total_bytes(headers: Message, start: int) -> int | None:
    """Return the size of the whole file, of which `start` bytes were received before, or None."""
    length = headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() else None
