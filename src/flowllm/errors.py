"""The exceptions of all errors that a user can correct."""


class FlowllmError(Exception):
    """An error that the user can correct; the message says what is wrong, where, and what to do.

    The command line prints it without a traceback. Every other exception is a defect of FlowLLM and
    keeps its traceback.
    """


class PassingError(FlowllmError):
    """An error that another attempt may not meet, such as a network that cannot be reached."""
