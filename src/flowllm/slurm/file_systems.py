"""Whether the nodes of a cluster can see a folder, as far as the type of its file system tells."""

from pathlib import Path

LOCAL_TYPES = frozenset(
    {"tmpfs", "ramfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs"}
)
"""Types that one machine has for itself, unless it exports them to others."""


def type_of(path: Path, mounts: str) -> str:
    """Return the type of the file system of a path.

    Args:
        path: a path, which need not exist.
        mounts: the text of /proc/mounts.
    """
    found = path.resolve()
    best, kind = -1, "unknown"
    for line in mounts.splitlines():
        _, point, one, *_ = line.split()
        # Octal escapes stand for spaces and tabs.
        folder = Path(point.encode().decode("unicode_escape"))
        if found.is_relative_to(folder) and len(folder.parts) >= best:
            best, kind = len(folder.parts), one
    return kind


def is_local(path: Path) -> str | None:
    """Return the type of a file system that only this machine has, None for any other type."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return None
    kind = type_of(path, mounts.read_text(encoding="utf-8", errors="replace"))
    return kind if kind in LOCAL_TYPES else None
