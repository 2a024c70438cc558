"""Keys and values in memory: how much of it there may be, and which slots have it.

Slots are address space for the longest sequence each. The system gives memory to what is written, page by page, and takes it back where a
slot is emptied; so what an engine holds follows what its sequences have read, and a budget bounds it.
"""

import mmap
from bisect import bisect_right
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE


class SlotArray:
    """Zeros of `shape`: (layers, slots, heads, parts, …), where a slot fills its heads part by part: tokens, or panels of them."""

    def __init__(self, *shape: int, dtype: Any = np.float32):
        self._layers, self._slots, self._heads, self._parts = shape[:4]
        self._part_bytes = np.dtype(dtype).itemsize * prod(shape[4:])
        self._slot_bytes = self._heads * self._parts * self._part_bytes
        # Private, so that pages can be given back; in pages of the usual size, as one of 2 MB would be that of many slots. A page more than
        # there are numbers: compiled code reads whole panels, also where the last head is narrower.
        self._memory = mmap.mmap(-1, self._layers * self._slots * self._slot_bytes + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.array: NDArray[Any] = np.frombuffer(self._memory, dtype, prod(shape)).reshape(shape)

    def empty(self, slot: int) -> None:
        """Give back all whole pages of the slot; it reads as zeros again."""
        for layer in range(self._layers):
            begin = (layer * self._slots + slot) * self._slot_bytes
            first, last = -(-begin // PAGE) * PAGE, (begin + self._slot_bytes) // PAGE * PAGE
            if last > first:
                self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)

    def bytes_of(self, parts: int) -> int:
        """The most memory that a slot takes which has filled so many parts, in whole pages."""
        return self._layers * _touched(self._heads, self._parts * self._part_bytes, parts * self._part_bytes)


class KeysAndValues:
    """Of all slots of a compiled runner. `keys`: (layers, slots, kv_heads, panels, head_dim, panel), of `panel` positions each, so that a
    product reads them in order; `values`: (layers, slots, kv_heads, capacity, head_dim). uint16 stands for BF16, the upper halves of float32."""

    def __init__(self, layers: int, slots: int, kv_heads: int, head_dim: int, capacity: int, panel: int, dtype: Any = np.float32):
        self._keys = SlotArray(layers, slots, kv_heads, -(-capacity // panel), head_dim, panel, dtype=dtype)
        self._values = SlotArray(layers, slots, kv_heads, capacity, head_dim, dtype=dtype)
        self.keys, self.values = self._keys.array, self._values.array

    def empty(self, slot: int) -> None:
        self._keys.empty(slot)
        self._values.empty(slot)

    def bytes_of(self, tokens: int) -> int:
        """The most memory that a slot takes which has held so many tokens, in whole pages."""
        return self._keys.bytes_of(-(-tokens // self.keys.shape[5])) + self._values.bytes_of(tokens)


def _touched(rows: int, row_bytes: int, bytes_of_a_row: int) -> int:
    """Bytes of the pages in which the first `bytes_of_a_row` of each row are: rows follow each other, wherever in a page they begin."""
    if not bytes_of_a_row:
        return 0
    return min(rows * row_bytes + 2 * PAGE, rows * (-(-bytes_of_a_row // PAGE) + 1) * PAGE)


class CacheMemory:
    """The budget of one engine. A slot counts with the most tokens it has held since it was emptied. Not thread-safe."""

    def __init__(self, total_bytes: int, bytes_of: Callable[[int], int], slots: int, longest: int):
        """`bytes_of` so many tokens in a slot, up to `longest`."""
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self._bytes = [bytes_of(tokens) for tokens in range(longest + 1)]
        self._held = [0] * slots

    @property
    def most_tokens(self) -> int:
        """The longest sequence that fits, with nobody beside it."""
        return bisect_right(self._bytes, self.total_bytes) - 1

    def bytes_of(self, tokens: int) -> int:
        return self._bytes[min(tokens, len(self._bytes) - 1)]

    def fits(self, slot: int, tokens: int) -> bool:
        """There is room for so many tokens in this slot."""
        return self.used_bytes + self.more(slot, tokens) <= self.total_bytes

    def hold(self, slot: int, tokens: int) -> None:
        if tokens > self._held[slot]:
            self.used_bytes += self.more(slot, tokens)
            self._held[slot] = tokens

    def holds(self, slot: int) -> bool:
        return self._held[slot] > 0

    def empty(self, slot: int) -> None:
        self.used_bytes -= self.bytes_of(self._held[slot])
        self._held[slot] = 0

    def more(self, slot: int, tokens: int) -> int:
        """Bytes that it takes beyond what the slot has."""
        return max(0, self.bytes_of(tokens) - self.bytes_of(self._held[slot]))
