"""Base class and types of the configuration's sections."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
)

from flowllm.plain_text import printable

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
"""A name that becomes part of a path: no slash, no space, nothing that a shell interprets."""

Fraction = Annotated[float, Field(ge=0, le=1)]
"""A share, 0 and 1 included."""

Probability = Annotated[float, Field(gt=0, le=1)]
"""A probability above 0."""


def has_credentials(url: str) -> bool:
    """Return whether an address has a user's name before its host (https://user:word@host)."""
    return re.match(r"([a-z][a-z0-9+.-]*:)?/*[^/?#]*@", url, re.IGNORECASE) is not None


def checked_path(text: str) -> str:
    """Return a path with a leading `~` expanded.

    Raises:
        ValueError: the path is empty, or contains what is expanded elsewhere or not at all (spaces
            at an end, control characters, variables, braces).
    """
    expanded, reason = text, None
    if text.startswith("~"):
        with suppress(RuntimeError):  # no such user
            expanded = str(Path(text).expanduser())
    if not text:
        reason = "is empty"
    elif text != text.strip():
        reason = "begins or ends with a space"
    elif printable(text) != text:
        reason = "contains a line break or another control character"
    elif re.search(r"\$\{?[A-Za-z_]", text):
        reason = "contains a variable, which is not expanded; write the whole path"
    elif "{" in text or "}" in text:
        reason = "contains braces, which Snakemake reads as a wildcard; use another name"
    elif text.startswith("~") and expanded == text:
        reason = "begins with ~, and there is no such user; write the whole path"
    if reason is not None:
        raise ValueError(f"the path {reason}")
    return expanded


OwnPath = Annotated[str, AfterValidator(checked_path)]
"""A path, or a name that is given instead of a path (mp_20, train)."""


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Row(Section):
    """A row of a list, whose `optional_keys` are left out of a job's settings where they are null.

    A key that is added to a row thus leaves finished jobs as they are.
    """

    optional_keys: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_null_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        return {
            key: value
            for key, value in values.items()
            if value is not None or key not in self.optional_keys
        }
