"""A pickle that shows whether it was unpickled."""

import pickle
from pathlib import Path


class _Toucher:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def pickle_that_creates(path: Path) -> bytes:
    """Return a pickle that creates the file `path` when it is unpickled."""
    body = pickle.dumps(_Toucher(path))
    pickle.loads(body)
    assert path.exists(), "unpickling it has no effect"
    path.unlink()
    return body
