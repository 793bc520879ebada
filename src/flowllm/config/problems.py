"""Messages of pydantic's errors: one line per problem, with the key's path and the value."""

from collections.abc import Mapping

from pydantic import ValidationError

from flowllm.plain_text import redacted


class UnshownError(ValueError):
    """A problem with a value that a message must not show (a password)."""


def list_problems(error: ValidationError, section: str = "") -> str:
    """Return one line per problem: the key's path, what is wrong, and the given value."""
    lines = []
    for problem in error.errors(include_url=False):
        path = ".".join([section] * bool(section) + [str(part) for part in problem["loc"]])
        given = problem["input"]
        cause = problem.get("ctx", {}).get("error")
        hidden = isinstance(given, Mapping) or isinstance(cause, UnshownError)
        shown = "" if hidden else redacted(f" (got {given!r})")
        lines.append(f"  {path or 'configuration'}: {problem['msg']}{shown}")
    return "\n".join(lines)
