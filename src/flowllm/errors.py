"""The one exception a user is meant to read."""


class FlowllmError(Exception):
    """Something the user can mend: the message names the file, row and field, and what to do.

    The command line prints it without a traceback; every other exception is a defect of ours
    and keeps its traceback.
    """
