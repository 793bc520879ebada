"""The console command: `flowllm STAGE` for the stages, and the commands beside them.

The workflow passes a stage's part of the configuration as JSON (`--settings`). On the command line
one names configuration files instead (`--config config.yaml --config workflow/config/demo.yaml`).
The options of a stage are the parameters of its function `run`, their texts those of its docstring.
A command's module is imported when the command is called.
"""

import ast
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from logging import FileHandler
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Group, Parameter

from flowllm import __version__
from flowllm.commands.options import (
    DEFAULT_CONFIG,
    ConfigFiles,
    LogFile,
    RowName,
    SettingsText,
    renamed_option,
)
from flowllm.config.stages import STAGES
from flowllm.errors import FlowllmError, PassingError
from flowllm.runtime.log import SAME_AGAIN, log, setup_logging
from flowllm.runtime.signals import Stopped, stop_at_once_on_sigterm
from flowllm.runtime.threads import limit_threads

COMMANDS = (
    "check",
    "estimate",
    "status",
    "why",
    "inspect",
    "export",
    "generate",
    "infill",
    "release",
    "archive",
    "restore",
)
"""Commands that are no stage, in the order of the help; each is a module of `flowllm.commands`."""


def make_app() -> App:
    """Make the command line: one command per stage, and the commands beside them."""
    app = App(
        name="flowllm",
        version=__version__,
        help="FlowLLM: crystals from a language model, refined by Riemannian flow matching.",
        help_format="markdown",
        default_parameter=Parameter(negative_iterable=(), negative_none=()),
        group_commands=Group("Options", sort_key=9),
        result_action="return_value",
    )
    commands, stages = Group("Commands", sort_key=1), Group("Stages", sort_key=2)
    for order, name in enumerate(COMMANDS):
        path = f"flowllm.commands.{name}"
        app.command(f"{path}:run", name=name, group=commands, help=_summary(path), sort_key=order)
    for order, name in enumerate(STAGES):
        text = _summary(f"flowllm.stages.{name}")
        app.command(f"flowllm.cli:{name}", name=name, group=stages, help=text, sort_key=order)
    app.register_install_completion_command()
    return app


def _summary(module: str) -> str:
    """Return the first line of the docstring of a module's `run`, without importing the module."""
    path = Path(__file__).parent.parent.joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == "run":
            return (ast.get_docstring(node) or "").partition("\n")[0]
    raise ValueError(f"{path}: defines no function `run`")


def __getattr__(name: str) -> Callable[..., None]:
    """Make the command of a stage, which is registered as `flowllm.cli:STAGE`."""
    if name not in STAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return stage_command(name)


def stage_command(stage: str) -> Callable[..., None]:
    """Return a stage's `run` as a command: with the common options in the place of `settings`."""
    run = import_module(f"flowllm.stages.{stage}").run
    own = [one for one in inspect.signature(run).parameters.values() if one.name != "settings"]
    common = [
        one
        for one in inspect.signature(_settings).parameters.values()
        if one.kind is one.KEYWORD_ONLY and (one.name != "name" or STAGES[stage].row is not None)
    ]
    settings_type = run.__annotations__["settings"]

    def command(**given: Any) -> None:
        chosen = {one.name: given.pop(one.name) for one in common if one.name in given}
        run(_settings(settings_type, stage, **chosen), **given)

    command.__name__, command.__doc__ = stage, run.__doc__
    command.__annotations__ = {one.name: one.annotation for one in (*own, *common)}
    vars(command)["__signature__"] = inspect.Signature([*own, *common])
    return command


def _settings(
    settings_type: type[Any],
    stage: str,
    *,
    settings: SettingsText = None,
    config: ConfigFiles = None,
    name: RowName = None,
    log: LogFile = None,
) -> Any:
    """Open the log and return the stage's settings, from JSON or from configuration files."""
    from flowllm.config.load import load_config

    setup_logging(log)
    if settings is not None:
        return settings_type.from_json(stage, settings)
    return settings_type.from_config(stage, load_config(config or DEFAULT_CONFIG), name)


app = make_app()


def main(words: Sequence[str] | None = None) -> None:
    """Run the command; print an error that the user can correct without a traceback.

    Args:
        words: the command line after `flowllm`, by default that of the process.
    """
    stop_at_once_on_sigterm()
    limit_threads()
    try:
        app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        given = sys.argv[1:] if words is None else words
        print(f"flowllm: {renamed_option(given) or error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        log.warning("%s", stopped.said)
        raise
    except Exception as error:
        if not log.handlers:
            setup_logging(None)
        if (said := _correctable(error)) is not None:
            log.error("%s", said)
            if _recurs(error) and any(isinstance(one, FileHandler) for one in log.handlers):
                log.error(SAME_AGAIN)  # for the workflow, which reads the log
            sys.exit(1)
        log.exception("This is a defect of FlowLLM, please report it with this traceback.")
        sys.exit(2)


def _correctable(error: Exception) -> str | None:
    """Return the message of an error that the user can correct, None for a defect."""
    from flowllm.io.file_errors import explain, is_refusal

    if isinstance(error, FlowllmError):
        return str(error)
    if isinstance(error, OSError) and is_refusal(error):
        return explain(error)
    return None


def _recurs(error: Exception) -> bool:
    """Return whether another attempt would fail in the same way.

    A refusal by the operating system may be that of one node, and memory grows with the attempt.
    """
    from flowllm.io.file_errors import is_refusal

    for one in (error, error.__cause__):
        refused = isinstance(one, OSError) and is_refusal(one)
        if refused or isinstance(one, MemoryError) or "allocate memory" in str(one):
            return False
    return not isinstance(error, PassingError)


if __name__ == "__main__":
    main()
