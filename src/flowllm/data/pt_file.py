"""The dictionaries of arrays that CDVAE and its successors save as `.pt`, read as data.

torch's `weights_only` builds nothing but tensors and plain values. What else such files hold is
allowed by name, but what is built are the classes here, which only keep what they are given:
numpy's own unpickling believes a file that says where Python objects lie in memory.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowllm.data.sample_files import MAX_BYTES, too_large
from flowllm.errors import FlowllmError

KEYS = ("atom_types", "frac_coords", "num_atoms", "lengths", "angles", "lattices")
"""The arrays that are read; `lattices` in place of lengths and angles."""

KEEP_ARRAYS = (
    'python -c "import pickle, torch; '
    "v = torch.load('eval_gen.pt', 'cpu', pickle); "  # so for torch with and without weights_only
    f"torch.save({{k: v[k] for k in {KEYS} if k in v}}, 'arrays.pt')\""
)
"""What leaves only the arrays in a file, to be run where its classes can be imported."""


MAX_NUMBERS = MAX_BYTES // 8
"""Numbers of one array, of 8 bytes each."""


class _Dtype:
    """Stands for `numpy.dtype(code, align, copy)`."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.byteorder = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byteorder = state[1]

    def numeric(self) -> np.dtype:
        name = f"{self.byteorder}{self.code}"
        if not re.fullmatch(r"[<>=|][iuf]\d{1,2}", name):
            raise ValueError(f"numpy's type {name}, not one of numbers")
        return np.dtype(name)


class _Array:
    """Stands for numpy's array, which its state fills."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def numbers(self) -> np.ndarray:
        _, shape, dtype, by_columns, data = self.state
        order = "F" if by_columns else "C"
        return np.frombuffer(data, dtype.numeric()).reshape(shape, order=order)


def _scalar(dtype: _Dtype, data: bytes) -> _Array:
    array = _Array()
    array.__setstate__((1, (), dtype, False, data))
    return array


class _Unused:
    """Stands for what the files hold beside their arrays: a command line's options, paths."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")

_STAND_INS = [
    *((_Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (_Array, "numpy.ndarray"),
    (_Dtype, "numpy.dtype"),
    (_Unused, "argparse.Namespace"),
    *((_Unused, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in _PATHS),
]
"""Names of numpy 1 and 2, and of Python to 3.12 and from 3.13."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of `KEYS` that a file has, whatever leading axes they have.

    Args:
        path: what torch.save wrote of a dictionary; its values are tensors, numpy's arrays, or
            lists of them.

    Returns:
        The arrays of numbers by their keys.

    Raises:
        FlowllmError: the file is no dictionary of arrays, holds objects of other programs, or is
            larger than it may be.
    """
    _check_size(path)
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn pickle raises any kind
        raise FlowllmError(f"{path}: {_refusal(error)}") from error
    if not isinstance(values, Mapping):
        raise FlowllmError(f"{path}: holds a {type(values).__name__}, not a dictionary of arrays")
    return {key: _numbers(values[key], f"{path}: {key}") for key in KEYS if key in values}


def _check_size(path: Path) -> None:
    """Refuse a file that takes more memory than other formats may; torch.save writes a zip file.

    Raises:
        FlowllmError: it has, or says that it unpacks to, more than the limit.
    """
    size = path.stat().st_size
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        size = max(size, sum(member.file_size for member in archive.infolist()))
    if size > MAX_BYTES:
        raise too_large(path, MAX_BYTES)


def _refusal(error: Exception) -> str:
    """Say what torch did not read, without its advice to read the file unsafely."""
    said = str(error)
    if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", said)):
        return (
            f"not a file of tensors only: it holds {found[1]}. Where it was made, and only if you "
            f"trust it, leave the arrays alone in a file: {KEEP_ARRAYS}"
        )
    cause = re.split(r"\.\s|\n", said.split("WeightsUnpickler error: ")[-1])[0]
    return f"not a file of tensors only ({cause or type(error).__name__})"


def _numbers(value: object, where: str) -> np.ndarray:
    try:
        array = _array(value, _Room())
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise FlowllmError(f"{where} is not an array ({error})") from error
    if array.dtype.kind not in "iuf":
        raise FlowllmError(f"{where} is not an array of numbers")
    return array


class _Room:
    """How many numbers an array may still take: a file can name one small part many times."""

    def __init__(self) -> None:
        self.left = MAX_NUMBERS

    def take(self, count: int) -> None:
        self.left -= max(count, 1)
        if self.left < 0:
            raise ValueError(f"more than {MAX_NUMBERS:,} numbers")


def _array(value: object, room: _Room) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        room.take(value.numel())
        # numpy has no bfloat16, and a parameter gives its values only detached.
        return (value.double() if value.is_floating_point() else value).detach().numpy()
    if isinstance(value, _Array):
        numbers = value.numbers()
        room.take(numbers.size)
        return numbers
    if isinstance(value, list | tuple):
        return np.asarray([_array(one, room) for one in value])
    room.take(1)
    return np.asarray(value)
