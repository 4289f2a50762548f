"""Pickles that show whether somebody opened them."""

import pickle
from pathlib import Path


class _Bomb:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def pickled_bomb(path: Path) -> bytes:
    """Bytes that make the file `path` where they are unpickled."""
    body = pickle.dumps(_Bomb(path))
    pickle.loads(body)
    assert path.exists(), "the bomb works"
    path.unlink()
    return body
