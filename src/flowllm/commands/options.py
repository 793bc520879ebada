"""Options that several commands share: their names, help texts and groups."""

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

LogFile = Annotated[
    Path | None, Parameter(name="--log", group=COMMON, help="File that receives the log, too.")
]
