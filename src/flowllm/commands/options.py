"""Options that several commands share: their names, help texts and groups."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

COMMON = Group("Common options", sort_key=9)

DEFAULT_CONFIG = (Path("config.yaml"),)

ConfigFiles = Annotated[
    list[Path] | None,
    Parameter(
        name="--config",
        group=COMMON,
        help="Configuration file. Repeat the option to overlay further files. [config.yaml]",
    ),
]

SettingsText = Annotated[
    str | None,
    Parameter(
        name="--settings",
        group=COMMON,
        help="The stage's part of the configuration as JSON, in place of --config.",
    ),
]

RowName = Annotated[
    str | None,
    Parameter(
        name="--name",
        group=COMMON,
        help="Name of the configuration's row (flow, base, method) that the job is for.",
    ),
]

RunConfigFiles = Annotated[list[Path] | None, Parameter(name="--config", group=COMMON)]
"""As `ConfigFiles`, of a command whose default is a run's own configuration."""

MethodName = Annotated[str | None, Parameter(name="--name", group=COMMON)]
"""As `RowName`, of a command that follows a method of a run."""

RENAMED = {
    ("generate", "--model"): "--model FOLDER/llm/model is now --run FOLDER, the folder of the run; "
    "--out is a folder, and --drafts-only stops after the drafts",
    ("generate", "--conditions"): "--conditions is now named --wishes",
    ("generate", "--space-group-number"): "--space-group-number is now named --space-group",
}
"""What replaces an option of an earlier version, by command and option."""

LogFile = Annotated[
    Path | None, Parameter(name="--log", group=COMMON, help="File that receives the log, too.")
]


def renamed_option(words: Sequence[str]) -> str | None:
    """Return what replaces an option of an earlier version in a command line; None without one."""
    for (command, option), said in RENAMED.items():
        given = any(word.partition("=")[0] == option for word in words[1:])
        if words and words[0] == command and given:
            return said
    return None
