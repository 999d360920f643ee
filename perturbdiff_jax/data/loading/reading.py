"""Cells on their way from a store into memory: begun at once, waited for by the first who needs them."""

import threading


class Reading:
    """A block of the store's rows. The read begins here; `block()` waits for it and may be called from any thread."""

    def __init__(self, store, ranges: list[tuple[int, int]], make_block):
        """`ranges`: rows (from, to); `make_block`: RawCells -> block. Raises nothing: errors wait for `block()`."""
        self._lock = threading.Lock()
        self._make_block = make_block
        self._block = self._error = None
        try:
            self._fetch = store.fetch(ranges)
        except Exception as error:  # whoever reads ahead must not fail in somebody else's step
            self._error = error

    def block(self):
        """The block; raises what the read or `make_block` raised, every time it is asked for."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._block is None:
                try:
                    self._block = self._make_block(self._fetch.result())
                except Exception as error:
                    self._error = error
                    raise
                finally:
                    self._fetch = None
            return self._block
