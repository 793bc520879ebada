"""Calls of spglib that may find nothing.

By its version, by the variable SPGLIB_OLD_ERROR_HANDLING, and after some functions of ASE in the
same process, which set that variable, spglib raises where it otherwise returns None.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from spglib import SpglibError

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")


def or_none(
    function: Callable[_Given, _Found | None], *given: _Given.args, **named: _Given.kwargs
) -> _Found | None:
    """Call a function of spglib, and return None where it finds nothing."""
    try:
        return function(*given, **named)
    except SpglibError:
        return None
