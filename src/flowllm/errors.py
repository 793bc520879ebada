"""The exception of all errors that a user can correct."""


class FlowllmError(Exception):
    """An error that the user can correct; the message says what is wrong, where, and what to do.

    The command line prints it without a traceback. Every other exception is a defect of FlowLLM and
    keeps its traceback.
    """
