"""The files of an earlier model that a training continues from.

The workflow lists the same files as the stage, so that a start with other files is trained on
again. The workflow's environment has neither torch nor numpy, so this module imports neither.
"""

from pathlib import Path


def start_files(folder: str | None, *parts: str) -> list[Path]:
    """Return the files of a model's folder by name; none if there is no start or no such folder.

    Unlike a folder's digest, the digest of these files depends on their bytes.

    Args:
        folder: the folder of the configuration, None for no start.
        parts: folder within it.
    """
    if folder is None:
        return []
    found = Path(folder, *parts).glob("*")
    return sorted(path for path in found if not path.is_dir() and path.name[0] not in "._")
