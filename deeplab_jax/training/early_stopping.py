"""Early stopping: ends a training whose evaluations do not get better (`train.patience`)."""


class Patience:
    """Counts the evaluations since the best one.

    Args:
      patience: number of evaluations without a better score after which the training ends; None never ends it.
      stale: count of an earlier process to continue.
    """

    def __init__(self, patience: int | None, stale: int = 0):
        self._patience, self.stale = patience, stale

    def record(self, *, is_best: bool) -> None:
        """Counts an evaluation."""
        if self._patience is not None:
            self.stale = 0 if is_best else self.stale + 1

    @property
    def is_exhausted(self) -> bool:
        """True if the training should end."""
        return self._patience is not None and self.stale >= self._patience
