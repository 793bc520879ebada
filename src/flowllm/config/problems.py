"""What pydantic finds wrong, as lines with the key's path and the value."""

from collections.abc import Mapping

from pydantic import ValidationError

from flowllm.plain_text import redacted


class UnshownError(ValueError):
    """A problem with a value that no message may repeat."""


def list_problems(error: ValidationError, section: str = "") -> str:
    """One line a problem: the key's path, what is wrong, what was given."""
    lines = []
    for problem in error.errors(include_url=False):
        path = ".".join([section] * bool(section) + [str(part) for part in problem["loc"]])
        given = problem["input"]
        cause = problem.get("ctx", {}).get("error")
        hidden = isinstance(given, Mapping) or isinstance(cause, UnshownError)
        shown = "" if hidden else redacted(f" (got {given!r})")
        lines.append(f"  {path or 'configuration'}: {problem['msg']}{shown}")
    return "\n".join(lines)
