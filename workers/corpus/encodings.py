"""Which encoding a file is in: UTF-8, else GB18030, else what charset-normalizer is sure of."""

from functools import lru_cache

UTF8, GB18030 = "utf-8", "gb18030"
# Of the Chinese characters of real text more than nine in ten are in level 1 of GB 2312; of other bytes read so, few are.
MIN_COMMON_SHARE = 0.6
MIN_CHARACTERS = 4  # one accented letter and its neighbour make a Chinese character too
MIN_EVIDENCE_BYTES = 48  # fewer bytes beyond ASCII prove nothing about a single-byte encoding
MAX_CHAOS = 0.1
SAMPLE_BYTES = 256 * 1024


def decode_line(line: bytes, encoding: str, errors: str = "strict") -> str:
    return line.decode(encoding, errors=errors)


def detect_encoding(head: bytes, *, is_whole: bool) -> str | None:
    """The encoding of a file by its first bytes; None when no guess is safe.

    Damaged lines in a file that is otherwise UTF-8 do not change the answer: those rows are dropped later, one by one.
    """
    everything = [line for line in head.split(b"\n") if line.strip()]
    if not is_whole and len(everything) > 1:
        everything = everything[:-1]  # the cut may go through a character
    lines = [line for line in everything if not line.isascii()]
    if not lines:
        return UTF8
    if 2 * sum(_is_valid(line, UTF8) for line in lines) >= len(lines):
        return UTF8
    if 2 * sum(_is_valid(line, GB18030) for line in lines) >= len(lines) and _looks_chinese(b"\n".join(lines)):
        return GB18030
    sample = b"\n".join(lines)[:SAMPLE_BYTES]
    encoding = _by_statistics(sample) if sum(byte > 127 for byte in sample) >= MIN_EVIDENCE_BYTES else None
    if encoding is None and 2 * len(lines) < len(everything):
        return UTF8  # a few damaged lines among many plain ones
    return encoding


def _is_valid(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _looks_chinese(sample: bytes) -> bool:
    characters = [c for c in sample[:SAMPLE_BYTES].decode(GB18030, errors="ignore") if "\u4e00" <= c <= "\u9fff"]
    return len(characters) >= MIN_CHARACTERS and sum(c in common_chinese() for c in characters) >= MIN_COMMON_SHARE * len(characters)


def _by_statistics(sample: bytes) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return best.encoding if best is not None and best.chaos <= MAX_CHAOS else None


@lru_cache(maxsize=1)
def common_chinese() -> frozenset[str]:
    """Level 1 of GB 2312 (3,755 simplified characters) and of Big5 (5,401 traditional ones)."""
    simplified = (bytes((high, low)) for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF))
    traditional = (bytes((high, low)) for high in range(0xA4, 0xC7) for low in (*range(0x40, 0x7F), *range(0xA1, 0xFF)))
    characters = [pair.decode("gb2312", errors="ignore") for pair in simplified] + [pair.decode("big5", errors="ignore") for pair in traditional]
    return frozenset(c for c in characters if "\u4e00" <= c <= "\u9fff")


@lru_cache(maxsize=1)
def common_simplified() -> frozenset[str]:
    """Level 1 of GB 2312 alone."""
    pairs = (bytes((high, low)) for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF))
    return frozenset(c for c in (pair.decode("gb2312", errors="ignore") for pair in pairs) if c)
