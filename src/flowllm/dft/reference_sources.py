"""Sources of DFT reference entries: the Materials Project's API, and Matbench Discovery's file.

Both have GGA and GGA+U energies with the MP2020 correction. The thermo documents of the API are
requested page by page, as the mp-api package does; the package is not required. The API key is read
from the environment and sent in a header. No message, log or file contains it.
"""

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowllm import __version__
from flowllm.data.fetch import check_url, fetch
from flowllm.dft.entries import ReferenceEntry, entry_of
from flowllm.errors import FlowllmError
from flowllm.runtime.log import log

MP_API = "https://api.materialsproject.org/materials/thermo/"
MP_KEY = "MP_API_KEY"

_PAGE = 1000
_TIMEOUT_SECONDS = 120.0
_FIELDS = "material_id,composition,energy_per_atom,energy_type,entries"

MATBENCH_URL = "https://ndownloader.figshare.com/files/40344436"
MATBENCH_MD5 = "76fc748db6b175bb80de4c276d27c235"
MATBENCH_FILE = "2023-02-07-mp-computed-structure-entries.json.gz"
"""All 154,718 entries of the Materials Project of 2023-02-07, the paper's reference (CC BY 4.0)."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A handler that turns a redirect into an error, so that the key is sent to one host only."""

    def redirect_request(self, *_: Any) -> None:
        """Return None, which ends the request with the HTTP status of the redirect."""


def materials_project_entries() -> Iterator[ReferenceEntry]:
    """Yield the current entries of the Materials Project, corrected by MP2020.

    Raises:
        FlowllmError: the environment has no key, the server rejects the request or cannot be
            reached, or its response is incomplete or has another form.
    """
    key = os.environ.get(MP_KEY, "")
    if not key:
        raise FlowllmError(
            f"dft_hull.source is mp_api: set {MP_KEY} to your key, from "
            "https://next-gen.materialsproject.org/api"
        )
    done, total = 0, 1
    while done < total:
        page = _page(key, done)
        try:
            total = int(page["meta"]["total_doc"])
            entries = [_entry(document) for document in page["data"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FlowllmError(
                f"{MP_API}: the response has an unexpected form ({type(error).__name__}: {error}). "
                "Try again, or set dft_hull.source to matbench_discovery"
            ) from error
        if not entries:
            raise FlowllmError(f"{MP_API}: gave {done} of {total} entries, then none. Try again")
        yield from entries
        done += len(entries)
        log.info("dft_hull: %d of %d entries from the Materials Project", done, total)


def _entry(document: dict[str, Any]) -> ReferenceEntry:
    """Return the entry of a thermo document; only its energy where the calculation is missing."""
    name = str(document["material_id"])
    if document.get("entries"):
        raw = document["entries"][document["energy_type"]]
        return entry_of({**raw, "entry_id": name}, 0, MP_API)
    amounts = {str(symbol): float(n) for symbol, n in document["composition"].items()}
    return ReferenceEntry(name, amounts, float(document["energy_per_atom"]))


def _page(key: str, skip: int) -> dict[str, Any]:
    """Return the page of thermo documents after the first `skip` ones.

    Raises:
        FlowllmError: the server rejects the request or cannot be reached. The exception has no
            cause, since that could contain the key.
    """
    check_url(MP_API)
    query = {"thermo_types": "GGA_GGA+U", "_fields": _FIELDS, "_limit": _PAGE, "_skip": skip}
    request = urllib.request.Request(  # noqa: S310 - checked above
        f"{MP_API}?{urllib.parse.urlencode(query)}",
        headers={"X-API-KEY": key, "User-Agent": f"flowllm/{__version__}"},
    )
    try:
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
            page: dict[str, Any] = json.load(response)
            return page
    except urllib.error.HTTPError as error:
        hint = f". Check {MP_KEY}" if error.code in (401, 403) else ". Try again"
        raise FlowllmError(f"{MP_API}: {error.code} {error.reason}{hint}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FlowllmError(f"{MP_API}: {error}. Check the network and try again") from None


def matbench_file(folder: Path) -> Path:
    """Download Matbench Discovery's file of entries to a folder, unless the folder has it.

    Raises:
        FlowllmError: the file cannot be downloaded, or its MD5 digest is wrong.
    """
    path = folder / MATBENCH_FILE
    if path.exists() and _md5(path) == MATBENCH_MD5:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{MATBENCH_FILE}.part")
    fetch(MATBENCH_URL, part)
    found = _md5(part)
    if found != MATBENCH_MD5:
        part.unlink()
        raise FlowllmError(
            f"{MATBENCH_URL}: MD5 {found}, expected {MATBENCH_MD5}. Download {MATBENCH_FILE} in "
            "another way and set dft_hull.source to its path"
        )
    part.replace(path)
    return path


def _md5(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
