"""What can go wrong with an evaluation, beside what its parts raise on their own (PhotoError, StorageError, …)."""

from infd.errors import InfdError


class EvaluationError(InfdError):
    """Images or statistics that a protocol does not allow: too few, too small, of mixed sizes, not finite."""


def require_images(found: int, needed: int, *, what: str, rule: str) -> None:
    """Raise EvaluationError unless there are enough images. `what`: whose they are; `rule`: why so many."""
    if found < needed:
        raise EvaluationError(f"{what}: {found} images; {rule} needs at least {needed}; add images, or choose smaller counts")
