"""The list of versions: filtered, and sorted by what their newest evaluation measured."""

from dataclasses import dataclass
from urllib.parse import urlencode

from django.db.models import F, FloatField, OrderBy, OuterRef, QuerySet, Subquery
from django.db.models.fields.json import KT
from django.db.models.functions import Cast
from django.http import QueryDict

from apps.jobs.models import Job
from apps.registry.models import Evaluation, ModelVersion
from apps.registry.selectors import versions

ROWS = 25
# What can be sorted by: the field, and whether the largest comes first when it is chosen.
SORTS = {
    "number": ("number", True),
    "bleu": ("bleu", True),
    "size": ("artifact_bytes", False),
    "speed": ("tokens_per_second", True),
    "parameters": ("total_parameters", True),
}
MEASURED = ("bleu", "tokens_per_second")


@dataclass(frozen=True)
class Listing:
    rows: list[ModelVersion]
    number: int  # of the page, from 1
    more: bool
    sort: str
    descending: bool


def listing(asked: QueryDict) -> Listing:
    sort = asked.get("sort", "number")
    field, largest_first = SORTS.get(sort, SORTS["number"])
    descending = (asked.get("order") or ("desc" if largest_first else "asc")) == "desc"
    rows = _filtered(versions(), asked)
    if field in MEASURED:
        rows = rows.annotate(**{field: _newest(f"metrics__{field}")})
    rows = rows.order_by(OrderBy(F(field), descending=descending, nulls_last=True), "-number")
    number = int(asked["page"]) if asked.get("page", "").isdecimal() and 0 < int(asked["page"]) < 100_000 else 1
    found = list(rows[(number - 1) * ROWS : number * ROWS + 1])
    return Listing(found[:ROWS], number, len(found) > ROWS, sort if sort in SORTS else "number", descending)


def _filtered(rows: QuerySet[ModelVersion], asked: QueryDict) -> QuerySet[ModelVersion]:
    for name in ("state", "kind"):
        if value := asked.get(name):
            rows = rows.filter(**{name: value})
    if words := asked.get("q", "").strip():
        rows = rows.filter(name__icontains=words[:60])
    return rows


def _newest(path: str) -> Subquery:
    """A figure of each version's newest finished evaluation, as the database reads it from the JSON."""
    rows = Evaluation.objects.filter(model_version=OuterRef("pk"), status=Job.Status.SUCCEEDED).order_by("-evaluation_set_id", "-pk")
    return Subquery(rows.values(figure=Cast(KT(path), FloatField()))[:1])


def sort_link(asked: QueryDict, listing: Listing, sort: str) -> str:
    """The query string that sorts by this column; the other way round when it already does."""
    values = {name: value for name, value in asked.items() if name in ("state", "kind", "q") and value}
    natural = SORTS[sort][1]
    descending = not listing.descending if listing.sort == sort else natural
    return "?" + urlencode({**values, "sort": sort, "order": "desc" if descending else "asc"})
