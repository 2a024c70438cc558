"""Files become rows: JSONL, CSV, Parquet or plain text, in memory bounded by the longest line, never by the file.

`inspect_file` is what the web process calls at an upload: it imports no heavy library unless the file is Parquet.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from workers.corpus.encodings import UTF8, decode_line, detect_encoding
from workers.corpus.records import KNOWN_FIELDS, REQUIRED, kind_of

JSONL, CSV, PARQUET, TEXT = "jsonl", "csv", "parquet", "text"
MAX_LINE_BYTES = 8 * 1024**2
CHUNK_BYTES = 1024**2
PARQUET_BATCH_ROWS = 2048
DELIMITERS = (",", ";", "\t", "|")
FORMATS_SAID = "Send JSONL (one JSON object a line), CSV with a header, Parquet or plain UTF-8 text."
# Files that people upload by mistake, told by their first bytes.
MAGIC = {
    b"%PDF": "a PDF document", b"PK\x03\x04": "a ZIP archive or an Office document", b"\x1f\x8b": "compressed with gzip",
    b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture", b"GIF8": "a picture", b"\xd0\xcf\x11\xe0": "an old Office document",
    b"BZh": "compressed with bzip2", b"\xfd7zXZ": "compressed with xz", b"7z\xbc\xaf": "a 7-Zip archive", b"SQLite format 3": "a SQLite database",
    b"\x7fELF": "a program", b"(\xb5/\xfd": "compressed with zstd", b"\xff\xfe": "UTF-16 text", b"\xfe\xff": "UTF-16 text",
}  # fmt: skip
UTF8_MARK = b"\xef\xbb\xbf"
FOREIGN_ENDINGS = frozenset({".xml", ".html", ".htm", ".yaml", ".yml", ".toml", ".tex", ".rtf", ".sql", ".py", ".js", ".ipynb", ".svg"})


class UnreadableFile(Exception):
    """The file as a whole cannot be read. The message is for people: what, why, what to do."""


@dataclass(frozen=True)
class FileSummary:
    format: str  # jsonl, csv, parquet or text
    encoding: str | None  # None for Parquet
    bytes: int
    split: str | None = None  # of a plain text: `paragraphs` or `lines`
    delimiter: str | None = None  # of a CSV
    columns: tuple[str, ...] = field(default=())
    kind: str = ""  # of the first good row


@dataclass(frozen=True, slots=True)
class RawRow:
    """Fields as they came; None where the row itself could not be read (`error` is its reason)."""

    fields: dict[str, Any] | None
    error: str | None = None


def inspect_file(path: Path | str) -> FileSummary:
    """Tell the format and check that at least one row can be used. Raises UnreadableFile."""
    path = Path(path)
    size = path.stat().st_size
    if size == 0:
        raise UnreadableFile(f"{path.name} is empty. {FORMATS_SAID}")
    with path.open("rb") as file:
        head = file.read(CHUNK_BYTES)
    if head[:4] == b"PAR1":
        return _with_first_kind(path, FileSummary(PARQUET, None, size, columns=_parquet_columns(path)))
    _refuse_binary(path, head)
    if not head.removeprefix(UTF8_MARK).strip() and size <= len(head):
        raise UnreadableFile(f"{path.name} holds only blank lines. {FORMATS_SAID}")
    _scan_lines(path)
    encoding = detect_encoding(head, is_whole=size <= len(head))
    if encoding is None:
        raise UnreadableFile(
            f"{path.name} is neither valid UTF-8 nor in an encoding that can be told with certainty. Save it as UTF-8 and send it again."
        )
    return _with_first_kind(path, _summarise_text(path, head, encoding, size))


def read_rows(path: Path | str, summary: FileSummary | None = None) -> Iterator[RawRow]:
    """The rows of a file in order, good and bad. Raises UnreadableFile for what makes the whole file useless."""
    path = Path(path)
    summary = summary or inspect_file(path)
    readers = {JSONL: _read_jsonl, CSV: _read_csv, PARQUET: _read_parquet, TEXT: _read_text}
    return readers[summary.format](path, summary)


def _refuse_binary(path: Path, head: bytes) -> None:
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            raise UnreadableFile(f"{path.name} is {what}, which cannot be read. {FORMATS_SAID}")
    control = sum(head.count(bytes([code])) for code in range(32) if code not in (7, 8, 9, 10, 12, 13, 27))
    if b"\0" in head or control > len(head) // 50:
        raise UnreadableFile(f"{path.name} is a binary file, not text. {FORMATS_SAID}")


def _scan_lines(path: Path) -> None:
    """Refuse a line that is too long to hold in memory, and bytes that no text has; one pass of chunks."""
    line_bytes, number = 0, 1
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            if b"\0" in chunk:
                raise UnreadableFile(f"{path.name} is a binary file, not text: it holds zero bytes. {FORMATS_SAID}")
            first, last = chunk.find(b"\n"), chunk.rfind(b"\n")
            line_bytes += len(chunk) if first < 0 else first
            if line_bytes > MAX_LINE_BYTES:
                raise _line_too_long(path, number)
            if first >= 0:
                number += chunk.count(b"\n")
                line_bytes = len(chunk) - last - 1


def _line_too_long(path: Path, number: int) -> UnreadableFile:
    limit = MAX_LINE_BYTES // 1024**2
    return UnreadableFile(f"Line {number:,} of {path.name} is longer than {limit} MB. Put each record on its own line, and send it again.")


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 2):
            number += 1
            if len(line) > MAX_LINE_BYTES + 1:
                raise _line_too_long(path, number)
            yield line.removeprefix(UTF8_MARK) if number == 1 else line


def _summarise_text(path: Path, head: bytes, encoding: str, size: int) -> FileSummary:
    ending = path.suffix.lower()
    start = decode_line(head[:65536].removeprefix(UTF8_MARK), encoding, errors="replace").lstrip()
    if start.startswith("[") and ending in (".json", ".jsonl", ".ndjson", ""):
        raise UnreadableFile(f"{path.name} is one JSON array. Write one JSON object a line (JSONL) and send it again.")
    if start.startswith("{") or ending in (".jsonl", ".ndjson"):
        return FileSummary(JSONL, encoding, size)
    if ending in FOREIGN_ENDINGS or ending == ".json" or start[:200].lower().startswith(("<?xml", "<!doctype", "<html")):
        raise UnreadableFile(f"The format of {path.name} is not known. {FORMATS_SAID}")
    header = start.split("\n", 1)[0].rstrip("\r")
    delimiter = _delimiter(header, expected=ending in (".csv", ".tsv"))
    if delimiter is not None:
        return FileSummary(CSV, encoding, size, delimiter=delimiter, columns=_csv_columns(path, header, delimiter))
    blank_lines = "\n\n" in start.replace("\r\n", "\n").strip()
    return FileSummary(TEXT, encoding, size, split="paragraphs" if blank_lines else "lines")


def _delimiter(header: str, *, expected: bool) -> str | None:
    """The delimiter under which most columns have known names; None for what is not a table."""
    best = max(DELIMITERS, key=lambda d: len(_known(header, d)))
    known = _known(header, best)
    if expected:
        return best
    # A first line of prose may hold one such word among others; a header consists of short names.
    return best if any(set(names) <= known for names in REQUIRED.values()) and best in header else None


def _known(header: str, delimiter: str) -> set[str]:
    return {name.strip().strip('"').lower() for name in header.split(delimiter)} & set(KNOWN_FIELDS)


def _csv_columns(path: Path, header: str, delimiter: str) -> tuple[str, ...]:
    columns = tuple(name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), []))
    _refuse_duplicates(path, columns)
    return columns


def _refuse_duplicates(path: Path, columns: tuple[str, ...]) -> None:
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise UnreadableFile(f"{path.name} has more than one column named {', '.join(twice)}. Give each column its own name.")


def _with_first_kind(path: Path, summary: FileSummary) -> FileSummary:
    for row in read_rows(path, summary):
        kind = kind_of(row.fields) if row.fields is not None else None
        if kind:
            return FileSummary(**{name: getattr(summary, name) for name in summary.__dataclass_fields__} | {"kind": kind})
    found = f" Its columns are {', '.join(summary.columns) or 'unnamed'}." if summary.format in (CSV, PARQUET) else ""
    needed = "; ".join(" + ".join(names) for names in reversed(REQUIRED.values()))
    raise UnreadableFile(f"{path.name} has no record with known fields.{found} A record needs one of: {needed}.")


def _encoding(summary: FileSummary) -> str:
    return summary.encoding or UTF8


def _read_jsonl(path: Path, summary: FileSummary) -> Iterator[RawRow]:
    for line in _lines(path):
        if not line.strip():
            continue
        try:
            fields = orjson.loads(line if summary.encoding == "utf-8" else decode_line(line, _encoding(summary)))
        except (orjson.JSONDecodeError, UnicodeDecodeError):
            yield RawRow(None, "unreadable")
            continue
        yield RawRow(fields) if isinstance(fields, dict) else RawRow(None, "unreadable")


def _read_csv(path: Path, summary: FileSummary) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_LINE_BYTES)
    damaged = False

    def text_lines() -> Iterator[str]:
        nonlocal damaged
        for line in _lines(path):
            try:
                yield decode_line(line, _encoding(summary))
            except UnicodeDecodeError:
                damaged = True
                yield decode_line(line, _encoding(summary), errors="replace")

    rows = csv.reader(text_lines(), delimiter=summary.delimiter or ",")
    next(rows)
    while True:
        damaged = False
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error:
            yield RawRow(None, "unreadable")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if damaged or len(cells) > len(summary.columns):
            yield RawRow(None, "unreadable")
        else:
            yield RawRow({name: cell for name, cell in zip(summary.columns, cells, strict=False) if name and cell != ""})


def _read_text(path: Path, summary: FileSummary) -> Iterator[RawRow]:
    paragraph: list[str] = []
    size = 0
    for line in _lines(path):
        try:
            text = decode_line(line, _encoding(summary)).strip()
        except UnicodeDecodeError:
            yield RawRow(None, "unreadable")
            continue
        ends = summary.split == "lines" or not text or size > MAX_LINE_BYTES
        if text:
            paragraph.append(text)
            size += len(line)
        if ends and paragraph:
            yield RawRow({"text": "\n".join(paragraph)})
            paragraph, size = [], 0
    if paragraph:
        yield RawRow({"text": "\n".join(paragraph)})


def _parquet_columns(path: Path) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = tuple(name.strip().lower() for name in pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFile(f"{path.name} is a damaged Parquet file ({str(error)[:120]}). Write it again and send it again.") from error
    _refuse_duplicates(path, columns)
    return columns


def _read_parquet(path: Path, summary: FileSummary) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            wanted = [name for name in file.schema_arrow.names if name.strip().lower() in KNOWN_FIELDS]
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=wanted):
                for fields in batch.to_pylist():
                    yield RawRow({name.strip().lower(): value for name, value in fields.items() if value is not None})
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFile(f"{path.name} is a damaged Parquet file ({str(error)[:120]}). Write it again and send it again.") from error
