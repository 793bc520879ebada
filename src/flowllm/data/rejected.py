"""Why a crystal of a source cannot be used."""


class RejectedError(Exception):
    """A crystal that cannot be used: the reason's short name, and the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
