"""Download or copy the raw crystals, check them, and list them in a manifest.

Every kind of source results in CSV files in MP-20's format beside the manifest: train.csv, val.csv
and test.csv, or all.csv where the source has no split.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flowllm.config.sections.data import Data
from flowllm.config.stage_settings import StageSettings
from flowllm.data import bundled
from flowllm.data.cif_blocks import read_cif_text
from flowllm.data.fetch import fetch
from flowllm.data.manifest import (
    SPLITS,
    Manifest,
    ManifestFile,
    SourceFormat,
    Split,
    write_manifest,
)
from flowllm.data.rows import FILE_COLUMN, count_rows, write_rows
from flowllm.data.sources import SourceFile, catalogue, hash_file, match_copy
from flowllm.errors import FlowllmError
from flowllm.io.files import atomic_path
from flowllm.runtime.log import log
from flowllm.runtime.provenance import StageRun, stage_run
from flowllm.runtime.resume import keep_seconds, partial_folder

ALL_FILE = "all.csv"


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    data: Data


def run(settings: Settings, *, out: Path) -> None:
    """Download or copy the raw crystals, check them, and list them in a manifest.

    Args:
        settings: section `data`.
        out: Manifest to write (manifest.json); the CSV files are written beside it.

    Raises:
        FlowllmError: the source cannot be fetched or read, or differs from what is expected.
    """
    section: Data = settings.data
    with stage_run(settings, inputs={}, output=out) as run:
        out.parent.mkdir(parents=True, exist_ok=True)
        if section.source in catalogue():
            manifest = fetch_source(section.source, section.url, out, run)
        elif section.source == "bundled":
            manifest = write_bundled(out)
        else:
            manifest = copy_folder(Path(section.source).expanduser(), out)
        write_manifest(out, manifest)
        rows = {file.name: file.rows for file in manifest.files}
        run.count(kind=manifest.kind, rows_out=sum(rows.values()), rows=rows)


def fetch_source(name: str, url: str | None, out: Path, run: StageRun) -> Manifest:
    """Download a public data set of the catalogue, except for files that are already correct.

    Args:
        name: the data set's name in the catalogue.
        url: base URL instead of the catalogue's, or None.
        out: the manifest; the files are written beside it. An earlier manifest is removed before
            one of its files is replaced; this holds for all kinds of sources.
        run: the stage's run; partial files of another URL are not resumed.

    Raises:
        FlowllmError: a file cannot be downloaded, or is not one of the known copies.
    """
    source = catalogue()[name]
    partial = partial_folder(out, run)
    files = []
    for split in SPLITS:
        wanted = source.files[split]
        path = out.with_name(wanted.name)
        origin = _origin_of(path, wanted)
        if origin is None:
            part = partial / f"{wanted.name}.part"
            address = f"{(url or source.url).rstrip('/')}/{wanted.name}"
            log.info("download: %s", address)
            fetch(address, part)
            origin = _origin_of(part, wanted)
            if origin is None:
                raise FlowllmError(_wrong_content(address, part))
            if path.exists():
                out.unlink(missing_ok=True)
            part.replace(path)
            keep_seconds(partial, run)
        files.append(_listed(path, split, origin))
        if files[-1].rows != wanted.rows:
            log.warning("%s: %d rows, %d expected", path, files[-1].rows, wanted.rows)
    values = {"kind": name, "licence": source.licence, "files": tuple(files)}
    return Manifest.model_validate(values)


def write_bundled(out: Path) -> Manifest:
    """Write pymatgen's AFLOW prototypes as all.csv beside the manifest."""
    path = out.with_name(ALL_FILE)
    with _replacing(path, out) as temporary:
        write_rows(temporary, ("material_id", "cif", "spacegroup.number"), bundled.prototypes())
    file = _listed(path, None, bundled.origin())
    return Manifest(kind="bundled", licence=bundled.LICENCE, files=(file,))


def copy_folder(source: Path, out: Path) -> Manifest:
    """Copy a local folder's CSV files, or write its CIF files as all.csv, beside the manifest.

    Raises:
        FlowllmError: it is not a folder, contains neither, lacks one of the three splits, or is
            the folder of the output.
    """
    if not source.is_dir():
        raise FlowllmError(
            f"data.source {str(source)!r}: no such folder; expected {', '.join(catalogue())}, "
            "bundled, or a folder of CSV or CIF files"
        )
    if source.resolve() == out.parent.resolve():
        raise FlowllmError(
            f"data.source {str(source)!r} is the folder that download writes to; name another one"
        )
    csvs: dict[Split | None, Path] = {split: source / f"{split}.csv" for split in SPLITS}
    if any(path.exists() for path in csvs.values()):
        return _copy_csvs("csv_folder", csvs, out)
    if (source / ALL_FILE).exists():
        return _copy_csvs("csv_folder", {None: source / ALL_FILE}, out)
    cifs = sorted(path for path in source.iterdir() if path.suffix.lower() == ".cif")
    if not cifs:
        raise FlowllmError(
            f"{source}: expected train.csv, val.csv and test.csv, or {ALL_FILE}, "
            "or files with the ending .cif; found none of them"
        )
    return _gather_cifs(cifs, out)


def _copy_csvs(kind: SourceFormat, paths: Mapping[Split | None, Path], out: Path) -> Manifest:
    files = []
    for split, path in paths.items():
        if not path.exists():
            raise FlowllmError(
                f"{path}: missing; a folder with one split needs train.csv, val.csv and test.csv "
                f"(or put all rows into one {ALL_FILE}, to be split by prepare.split_shares)"
            )
        target = out.with_name(path.name)
        with _replacing(target, out) as temporary:
            shutil.copyfile(path, temporary)
        files.append(_listed(target, split, path.name))
    return Manifest(kind=kind, licence=None, files=tuple(files))


def _gather_cifs(cifs: list[Path], out: Path) -> Manifest:
    path = out.with_name(ALL_FILE)
    rows = (
        {"material_id": cif.stem, FILE_COLUMN: cif.name, "cif": read_cif_text(cif)} for cif in cifs
    )
    with _replacing(path, out) as temporary:
        write_rows(temporary, ("material_id", FILE_COLUMN, "cif"), rows)
    file = _listed(path, None, f"{len(cifs)} CIF files")
    return Manifest(kind="cif_folder", licence=None, files=(file,))


@contextmanager
def _replacing(path: Path, manifest: Path) -> Iterator[Path]:
    """Give a temporary path that becomes `path`; if its content changes, remove the manifest."""
    with atomic_path(path) as temporary:
        yield temporary
        if path.exists() and hash_file(path) != hash_file(temporary):
            manifest.unlink(missing_ok=True)


def _listed(path: Path, split: Split | None, origin: str) -> ManifestFile:
    sha256, _ = hash_file(path)
    return ManifestFile(
        name=path.name,
        split=split,
        size=path.stat().st_size,
        sha256=sha256,
        rows=count_rows(path),
        origin=origin,
    )


def _origin_of(path: Path, wanted: SourceFile) -> str | None:
    """Return the origin of a copy of the wanted file, None if it is missing or unknown."""
    copy = match_copy(path, wanted.copies) if path.is_file() else None
    return copy.origin if copy else None


def _wrong_content(address: str, part: Path) -> str:
    """Delete a downloaded file with unexpected content and return the error message."""
    size = part.stat().st_size
    with part.open("rb") as handle:
        start = handle.read(64)
    part.unlink()
    hint = ""
    if start.startswith(b"version https://git-lfs"):
        hint = " It is a Git LFS pointer, not the file: take the address of the LFS content."
    elif start.lstrip().startswith(b"<"):
        hint = " It is a web page, perhaps a proxy's login page."
    return (
        f"{address}: wrong checksum ({size} bytes, none of the copies in data/sources.yaml).{hint} "
        "It was deleted; run again. If it happens again, the address serves another version: "
        "set data.url to another mirror, or data.source to a folder with the files you trust."
    )
