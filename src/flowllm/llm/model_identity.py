"""What a merged model depends on: equal identities mean equal weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowllm.io.archive_index import TIMESTAMP
from flowllm.runtime.provenance import digest


def merged_identity(adapter: Path, settings: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Return the identity of a merged model.

    The adapter's files have the content of the base model (`base_content.base_content`).

    Args:
        adapter: folder of the adapter, all of whose files are read.
        settings: settings of `merge_adapter`, as in its record.
        version: version of `merge_adapter`.
    """
    files = sorted(path for path in adapter.rglob("*") if path.is_file() and path.name != TIMESTAMP)
    digests = {str(path.relative_to(adapter)): digest(path) for path in files}
    return {"adapter": digests, "settings": dict(settings), "stage_version": version}
