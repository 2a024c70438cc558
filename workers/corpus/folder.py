"""The folder a processed dataset is (docs/architecture.md): records.parquet, train, eval and preferences.jsonl, report.json."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from workers.corpus.records import CLAIM, DOCUMENT, QUESTION, Record

# `title` and `variant` (of the phrasing, or the kind of negative) come after the columns everybody reads.
SCHEMA = pa.schema(
    [
        ("row", pa.int64()), ("id", pa.string()), ("kind", pa.string()), ("stage", pa.string()), ("reason", pa.string()), ("domain", pa.string()),
        ("lang", pa.string()), ("text", pa.string()), ("original", pa.string()), ("cluster", pa.int64()), ("source", pa.string()),
        ("question", pa.string()), ("answer", pa.string()), ("label", pa.bool_()), ("rating", pa.int64()), ("split", pa.string()),
        ("title", pa.string()), ("variant", pa.string()),
    ]
)  # fmt: skip
ROW_GROUP_ROWS = 20_000
TEXT_FIELDS = {DOCUMENT: ("text",), QUESTION: ("question", "answer"), CLAIM: ("question", "answer", "label")}


def write_folder(folder: Path, records: list[Record], report: dict[str, Any], preferences: Sequence[dict[str, Any]] = ()) -> None:
    """Write all files, each under a temporary name first, so that whoever finds one finds it whole."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_parquet(folder / "records.parquet", records)
    for split in ("train", "eval"):
        _write_lines(folder / f"{split}.jsonl", (line_of(record) for record in records if record.kept and goes_to(record) == split))
    if preferences:
        _write_lines(folder / "preferences.jsonl", preferences)
    _write(folder / "report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2))


def goes_to(record: Record) -> str | None:
    """The file a kept record is written to. An entry is in neither: it is there as its pairs and claims."""
    if record.kind == DOCUMENT:
        return "train"
    return (record.split or "train") if record.kind in (QUESTION, CLAIM) else None


def line_of(record: Record) -> dict[str, Any]:
    fields = {name: getattr(record, name) for name in TEXT_FIELDS[record.kind]}
    described = {"domain": record.domain, "lang": record.lang, "weight": record.weight, "id": record.id, "source": record.source}
    own = {"claim": record.text} if record.kind == CLAIM else {"image": record.image} if record.image else {}
    return {"kind": record.kind, **fields, **own, **described}


def _write_parquet(path: Path, records: list[Record]) -> None:
    temporary = path.with_suffix(".tmp")
    with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for start in range(0, len(records), ROW_GROUP_ROWS):
            part = records[start : start + ROW_GROUP_ROWS]
            writer.write_table(pa.table({name: [getattr(record, name) for record in part] for name in SCHEMA.names}, schema=SCHEMA))
    os.replace(temporary, path)


def _write_lines(path: Path, rows: Iterable[dict[str, Any]] | Iterator[dict[str, Any]]) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.writelines(orjson.dumps(row) + b"\n" for row in rows)
    os.replace(temporary, path)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
