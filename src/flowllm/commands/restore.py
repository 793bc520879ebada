"""Bring archived outputs back into a run's folder."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flowllm.commands.archive import refuse_while_running
from flowllm.errors import FlowllmError
from flowllm.runtime.archive import archived_names, bring_back
from flowllm.runtime.archive import forget as forget_output
from flowllm.runtime.log import log, setup_logging


def run(
    run_dir: Path,
    /,
    *names: Annotated[str, Parameter(negative=())],
    forget: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Move archived outputs back to their places in a run's folder, with their times.

    Args:
        run_dir: The run's folder.
        names: Archived outputs, or folders of them, e.g. llm/model or pairs. [all]
        forget: Only remove them from the list of archived outputs: the workflow then makes them
            again, and for stages that are not repeatable also all that was made from them.

    Raises:
        FlowllmError: nothing is archived under a name, or an archived copy is missing.
    """
    setup_logging(None)
    if not run_dir.is_dir():
        raise FlowllmError(f"{run_dir}: no such folder; name the run_dir of a run")
    refuse_while_running()
    found = archived_names(run_dir, [name.rstrip("/") for name in names])
    for name in found:
        if forget:
            forget_output(run_dir, name)
        else:
            bring_back(run_dir, name)
    log.info("restore: %d outputs %s", len(found), "forgotten" if forget else "back in place")
