"""Why a crystal of a source cannot be used."""


class RejectedError(Exception):
    """A crystal that cannot be used.

    Attributes:
        reason: short name of the reason, e.g. bad_cif.
        detail: what is wrong, for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
