"""What can go wrong, as exceptions whose text is one line: what was found, what was expected, what to do."""


class PLNDError(Exception):
    """Bad input; the command line prints it as one line and exits with its status.

    Attributes:
        status: of the command line, 2.
    """

    status = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a quoted name or another library's words may have several


class ArtifactError(PLNDError):
    """A file that is not a valid scores or neurons artifact."""


class NotFoundError(PLNDError):
    """A search that found nothing that does what was asked; the command line exits with status 3."""

    status = 3


class ModelMismatchError(PLNDError):
    """Neurons or scores that were made for another model than the one at hand."""


class FamilyError(PLNDError):
    """A model family, projection or layout that the families table does not cover."""


class CorpusError(PLNDError):
    """A corpus that cannot be read, or that has no document that can be scored."""


class TokenError(PLNDError, IndexError):
    """A token id that the model has no embedding for."""
