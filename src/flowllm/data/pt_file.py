"""The dictionaries of arrays that CDVAE and its successors save as `.pt`, read as data.

torch's `weights_only` builds only tensors and plain values. Such files contain other objects too,
which are allowed by name; instances of the classes here are built in their place, which only store
what they are given. numpy's own unpickling is not used, since it accepts memory addresses of Python
objects from the file.
"""

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from flowllm.data.sample_files import MAX_BYTES, too_large
from flowllm.errors import FlowllmError

KEYS = ("atom_types", "frac_coords", "num_atoms", "lengths", "angles", "lattices")
"""The arrays that are read; `lattices` replaces lengths and angles."""

KEEP_ARRAYS = (
    'python -c "import pickle, torch; '
    # With pickle as an argument torch reads objects whatever its default of weights_only.
    "v = torch.load('eval_gen.pt', 'cpu', pickle); "
    f"torch.save({{k: v[k] for k in {KEYS} if k in v}}, 'arrays.pt')\""
)
"""Command that keeps only the arrays of a file, for where its classes can be imported."""

MAX_NUMBERS = MAX_BYTES // 8
"""Limit of the numbers per array, 8 bytes each."""


class _Dtype:
    """Replacement for `numpy.dtype(code, align, copy)`."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.byteorder = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byteorder = state[1]

    def numeric(self) -> np.dtype[Any]:
        name = f"{self.byteorder}{self.code}"
        if not re.fullmatch(r"[<>=|][iuf]\d{1,2}", name):
            raise ValueError(f"numpy's type {name} is not numeric")
        return np.dtype(name)


class _Array:
    """Replacement for numpy's array, whose content comes as its state."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def numbers(self) -> np.ndarray:
        _, shape, dtype, by_columns, data = self.state
        values: np.ndarray = np.frombuffer(data, dtype.numeric())
        order: Literal["F", "C"] = "F" if by_columns else "C"
        return values.reshape(tuple(shape), order=order)


def _scalar(dtype: _Dtype, data: bytes) -> _Array:
    array = _Array()
    array.__setstate__((1, (), dtype, False, data))
    return array


class _Unused:
    """Replacement for other objects in the files: options of a command line, paths."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")

_REPLACEMENTS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *((_Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (_Array, "numpy.ndarray"),
    (_Dtype, "numpy.dtype"),
    (_Unused, "argparse.Namespace"),
    *((_Unused, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in _PATHS),
]
"""The classes here and the names they replace, of numpy 1 and 2, Python up to 3.12 and 3.13."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of `KEYS` that a file has, with any leading axes.

    Args:
        path: a dictionary saved by torch.save, whose values are tensors, numpy arrays, or lists
            of them.

    Returns:
        The arrays of numbers by their keys.

    Raises:
        FlowllmError: the file is not a dictionary of arrays, contains objects of other programs,
            or is larger than the limit.
    """
    _check_size(path)
    try:
        with torch.serialization.safe_globals(_REPLACEMENTS):
            values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a truncated pickle raises many kinds
        raise FlowllmError(f"{path}: {_refusal(error)}") from error
    if not isinstance(values, Mapping):
        raise FlowllmError(
            f"{path}: contains a {type(values).__name__}, not a dictionary of arrays"
        )
    return {key: _numbers(values[key], f"{path}: {key}") for key in KEYS if key in values}


def _check_size(path: Path) -> None:
    """Refuse a file that takes more memory than the limit; torch.save writes a zip file.

    Raises:
        FlowllmError: the file has, or declares that it unpacks to, more bytes than the limit.
    """
    size = path.stat().st_size
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        size = max(size, sum(member.file_size for member in archive.infolist()))
    if size > MAX_BYTES:
        raise too_large(path, MAX_BYTES)


def _refusal(error: Exception) -> str:
    """Return what torch refused to read, without its advice to read the file unsafely."""
    message = str(error)
    if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", message)):
        return (
            f"not a file of tensors only: it contains {found[1]}. If you trust it, keep only the "
            f"arrays, on the machine where it was made: {KEEP_ARRAYS}"
        )
    cause = re.split(r"\.\s|\n", message.split("WeightsUnpickler error: ")[-1])[0]
    return f"not a file of tensors only ({cause or type(error).__name__})"


def _numbers(value: object, where: str) -> np.ndarray:
    try:
        array = _array(value, _Budget())
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise FlowllmError(f"{where} is not an array ({error})") from error
    if array.dtype.kind not in "iuf":
        raise FlowllmError(f"{where} is not an array of numbers")
    return array


class _Budget:
    """The numbers that an array may still have, since a file can refer to one part many times."""

    def __init__(self) -> None:
        self.left = MAX_NUMBERS

    def take(self, count: int) -> None:
        self.left -= max(count, 1)
        if self.left < 0:
            raise ValueError(f"more than {MAX_NUMBERS:,} numbers")


def _array(value: object, budget: _Budget) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        budget.take(value.numel())
        # numpy has no bfloat16, and a parameter must be detached.
        converted = value.double() if value.is_floating_point() else value
        return np.asarray(converted.detach().numpy())
    if isinstance(value, _Array):
        numbers = value.numbers()
        budget.take(numbers.size)
        return numbers
    if isinstance(value, list | tuple):
        return np.asarray([_array(one, budget) for one in value])
    budget.take(1)
    return np.asarray(value)
