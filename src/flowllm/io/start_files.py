"""The files of an earlier model that a training continues from.

The workflow lists the same files as the stage, so that a start with other files is trained on
again. The workflow's environment has neither torch nor numpy, so this module imports neither.
"""

from pathlib import Path

FLOW_DESCRIPTION = "model.json"
"""Name of a file that each folder of a trained flow has."""

MODEL_RECORD = "flowllm.json"
"""Name of the record in the folder of a fine-tuned language model."""


def flow_folder(start: str, flow: str) -> Path:
    """Return the folder of the network that a flow continues from.

    Args:
        start: folder of one network, from which a flow of any name continues; or folder `rfm` of a
            run, which has a network per name.
        flow: name of the flow.
    """
    folder = Path(start)
    return folder if (folder / FLOW_DESCRIPTION).is_file() else folder / flow


def flow_start_files(start: str | None, flow: str) -> list[Path]:
    """Return the files of the network that a flow continues from; none if there is no start."""
    return [] if start is None else start_files(str(flow_folder(start, flow)))


def start_files(folder: str | None) -> list[Path]:
    """Return the files of a model's folder by name; none if there is no start or no such folder.

    Unlike a folder's digest, the digest of these files depends on their bytes.

    Args:
        folder: the folder of the configuration, None for no start.
    """
    if folder is None:
        return []
    found = Path(folder).glob("*")
    return sorted(path for path in found if not path.is_dir() and path.name[0] not in "._")
