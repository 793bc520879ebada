"""What every section of the configuration shares."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from flowllm.plain_text import printable

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
"""A name that becomes part of a path: no slash, no space, nothing a shell would read."""

Fraction = Annotated[float, Field(ge=0, le=1)]

Probability = Annotated[float, Field(gt=0, le=1)]


def has_credentials(url: str) -> bool:
    """Whether an address has a user's name or password before its host (https://user:word@host)."""
    return re.match(r"([a-z][a-z0-9+.-]*:)?/*[^/?#]*@", url, re.IGNORECASE) is not None


def checked_path(text: str) -> str:
    """Return a path with a leading `~` expanded.

    Raises:
        ValueError: Snakemake would read something else in it, or it names a variable.
    """
    expanded, reason = text, None
    if text.startswith("~"):
        with suppress(RuntimeError):  # no such user
            expanded = str(Path(text).expanduser())
    if text != text.strip():
        reason = "begins or ends with a space"
    elif printable(text) != text:
        reason = "holds a line break or another control character"
    elif re.search(r"\$\{?[A-Za-z_]", text):
        reason = "names a variable, which is not expanded; write the path out"
    elif "{" in text or "}" in text:
        reason = "holds braces, which Snakemake reads as a wildcard"
    elif text.startswith("~") and expanded == text:
        reason = "begins with ~, and there is no such user; write the path out"
    if reason is not None:
        raise ValueError(f"the path {reason}")
    return expanded


OwnPath = Annotated[str, StringConstraints(min_length=1), AfterValidator(checked_path)]
"""A path, or a name that may stand in its place."""


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
