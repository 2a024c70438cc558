"""Reads of datasets and of the records inside a processed one; pages and REST call the same."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from django.db.models import QuerySet

from apps import artifacts
from apps.datasets.models import Dataset, ProcessingRun

RECORDS_FILE = "records.parquet"
SEARCHED = ("text", "question", "answer", "title", "original")
PAGE_RECORDS = 50


def datasets() -> QuerySet[Dataset]:
    return Dataset.objects.select_related("current_run", "created_by")


def latest_run(dataset: Dataset) -> ProcessingRun | None:
    return dataset.runs.order_by("-id").first()


@dataclass(frozen=True)
class RecordFilter:
    """Which records of a processed dataset; an empty value asks for nothing."""

    stage: str = ""
    reason: str = ""
    domain: str = ""
    kind: str = ""
    lang: str = ""
    split: str = ""
    label: str = ""  # of claims: true or false
    q: str = ""  # anywhere in the texts, whatever the case

    @property
    def given(self) -> dict[str, str]:
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name))}

    def expression(self) -> pc.Expression | None:
        parts = [pc.field(name) == value for name, value in self.given.items() if name not in ("q", "label")]
        if self.label:
            parts.append(pc.field("label") == (self.label == "true"))
        if self.q:
            found = [pc.match_substring(pc.field(name), self.q, ignore_case=True) for name in SEARCHED]
            parts.append(_any(found))
        whole = None
        for part in parts:
            whole = part if whole is None else whole & part
        return whole


@dataclass(frozen=True)
class RecordPage:
    """Records in the order of their rows. `after` and `before` are cursors (row numbers) of the next and the previous page."""

    records: list[dict]
    after: int | None
    before: int | None

    @property
    def shown(self) -> int:
        return len(self.records)


def records_path(run: ProcessingRun) -> Path:
    return artifacts.local_path(run.folder) / RECORDS_FILE


def records(
    run: ProcessingRun, where: RecordFilter = RecordFilter(), *, after: int | None = None, before: int | None = None, limit: int = PAGE_RECORDS
) -> RecordPage:
    """One page of a run's records: those with a row number above `after`, or the last ones below `before`.

    Reads row group by row group and stops when the page is full, so that the first page of a large folder costs little.
    """
    expression = where.expression()
    backwards = before is not None
    cursor = pc.field("row") < before if backwards else pc.field("row") > after if after is not None else None
    if cursor is not None:
        expression = cursor if expression is None else expression & cursor
    found: list[dict] = []
    for table in _row_groups(records_path(run), backwards, after, before):
        rows = (table.filter(expression) if expression is not None else table).to_pylist()
        found += reversed(rows) if backwards else rows
        if len(found) > limit:
            break
    more = len(found) > limit
    found = found[:limit]
    if backwards:
        found.reverse()
    if not found:
        return RecordPage([], None, None)
    has_next = True if backwards else more
    has_previous = more if backwards else after is not None
    return RecordPage(found, found[-1]["row"] if has_next else None, found[0]["row"] if has_previous else None)


def _row_groups(path: Path, backwards: bool, after: int | None, before: int | None) -> Iterator[pa.Table]:
    """The file's row groups that may hold rows beyond the cursor, in the order asked for."""
    with pq.ParquetFile(path) as file:
        numbers = range(file.metadata.num_row_groups)
        for number in reversed(numbers) if backwards else numbers:
            statistics = file.metadata.row_group(number).column(0).statistics
            bounds = (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None
            if bounds and ((after is not None and bounds[1] <= after) or (before is not None and bounds[0] >= before)):
                continue
            yield file.read_row_group(number)


def _any(parts: list[pc.Expression]) -> pc.Expression:
    whole = pc.coalesce(parts[0], False)
    for part in parts[1:]:
        whole = whole | pc.coalesce(part, False)
    return whole


def drops(run: ProcessingRun) -> dict[str, dict[str, int]]:
    """Stage → reason → rows dropped there for it, most first."""
    return _drops(str(records_path(run)))


@lru_cache(maxsize=64)  # a published folder never changes
def _drops(path: str) -> dict[str, dict[str, int]]:
    table = pq.read_table(path, columns=["stage", "reason"])
    dropped = table.filter(pc.is_valid(table["reason"]))
    counted = Counter(zip(dropped["stage"].to_pylist(), dropped["reason"].to_pylist(), strict=True))
    found: dict[str, dict[str, int]] = {}
    for (stage, reason), rows in counted.most_common():
        found.setdefault(stage, {})[reason] = rows
    return found


@dataclass(frozen=True)
class Cluster:
    """Rows that say the same: the one that stayed and those that went."""

    number: int
    kept: dict | None
    dropped: list[dict]

    @property
    def size(self) -> int:
        return len(self.dropped) + (self.kept is not None)


def clusters(run: ProcessingRun, *, after: int = -1, limit: int = 20) -> tuple[list[Cluster], int | None]:
    """Clusters of duplicates in the order of their numbers, from the first above `after`; and the cursor of the next page."""
    table = pq.read_table(records_path(run), filters=pc.field("cluster") > after)
    numbers = sorted({number for number in table["cluster"].to_pylist() if number is not None})
    wanted = numbers[:limit]
    rows = table.filter(pc.is_in(table["cluster"], pa.array(wanted, pa.int64()))).to_pylist()
    groups: dict[int, list[dict]] = {number: [] for number in wanted}
    for row in rows:
        groups[row["cluster"]].append(row)
    found = [
        Cluster(number, next((r for r in members if r["stage"] != "deduplicated"), None), [r for r in members if r["stage"] == "deduplicated"])
        for number, members in groups.items()
    ]
    return [cluster for cluster in found if cluster.dropped], wanted[-1] if len(numbers) > limit else None


def repaired(run: ProcessingRun, *, after: int = -1, limit: int = 20) -> tuple[list[dict], int | None]:
    """Kept records that cleaning changed, each with `original` and `text`."""
    table = pq.read_table(
        records_path(run), columns=["row", "id", "kind", "stage", "reason", "lang", "domain", "text", "original"],
        filters=pc.field("original").is_valid() & pc.field("reason").is_null() & pc.field("text").is_valid() & (pc.field("row") > after),
    )  # fmt: skip
    rows = table.slice(0, limit).to_pylist()
    return rows, rows[-1]["row"] if table.num_rows > limit else None


@dataclass(frozen=True)
class Source:
    """A knowledge entry and what was made of it."""

    entry: dict
    made: list[dict]


def made_of_entries(run: ProcessingRun, kind: str, *, false_only: bool = False, after: int = -1, limit: int = 20) -> tuple[list[Source], int | None]:
    """Entries (or the rows that served as such) with the used records of `kind` made of them, in the order of the entries' rows."""
    where = pc.field("source").is_valid() & (pc.field("kind") == kind) & pc.field("reason").is_null()
    if false_only:
        where &= pc.field("label") == False  # noqa: E712 — an expression, not a comparison
    made = pq.read_table(records_path(run), filters=where)
    ids = set(made["source"].to_pylist())
    columns = ["row", "id", "kind", "title", "text", "domain", "lang"]
    entries = pq.read_table(records_path(run), columns=columns, filters=(pc.field("row") > after) & pc.field("source").is_null())
    entries = entries.filter(pc.is_in(entries["id"], pa.array(sorted(ids), pa.string())))
    chosen = entries.slice(0, limit).to_pylist()
    wanted = pa.array([entry["id"] for entry in chosen], pa.string())
    groups: dict[str, list[dict]] = {entry["id"]: [] for entry in chosen}
    for row in made.filter(pc.is_in(made["source"], wanted)).to_pylist():
        groups[row["source"]].append(row)
    return [Source(entry, groups[entry["id"]]) for entry in chosen], chosen[-1]["row"] if entries.num_rows > limit else None
