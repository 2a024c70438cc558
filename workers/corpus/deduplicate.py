"""Duplicates and near-duplicates: MinHash finds candidates, exact Jaccard verifies, the best row of a cluster stays.

Different facts that share a template ("X is the capital of Y") are never merged: see `same_statement`.
"""

from collections import defaultdict
from dataclasses import replace
from functools import cache, lru_cache

import numpy as np

from workers.corpus.advancing import Advance, unheard
from workers.corpus.minhash import HAN_SHINGLE, LATIN_SHINGLE, Hashes, candidate_pairs, shingle_hashes, signatures
from workers.corpus.records import CLAIM, DEDUPLICATED, DOCUMENT, ENTRY, QUESTION, RATING, Record, normalised
from workers.corpus.same_statement import same_statement

MIN_JACCARD = 0.7
BANDS, ROWS = 25, 5  # recall 0.998 at a Jaccard of 0.75 (measured on 50,000 documents)
# A signature estimates Jaccard with a standard error of 0.04: below this nothing worth an exact comparison is lost.
MIN_ESTIMATE = MIN_JACCARD - 0.15
SIGNED = 0.3  # of the time, roughly, has passed when every text has its signature
CACHED_TEXTS = 10_000  # whose shingles are remembered: candidates come in clusters
_TEXTS = (DOCUMENT, ENTRY)

Cluster = tuple[int, list[int], str]  # the row that stays, those that go, and why


def deduplicate(records: list[Record], advance: Advance = unheard) -> list[Record]:
    """Mark `exact_duplicate` and `near_duplicate` rows, with the number of their cluster; the row that stays has it too."""
    kept = [i for i, record in enumerate(records) if record.kept]
    clusters = _exact(records, kept)
    gone = {i for _, members, _ in clusters for i in members}
    texts = [i for i in kept if i not in gone and records[i].kind in _TEXTS]
    clusters += _near(records, texts, advance)
    return _mark(records, clusters)


def _mark(records: list[Record], clusters: list[Cluster]) -> list[Record]:
    """Clusters that share a row are one: an exact copy of what is itself a near copy belongs to both."""
    marked = list(records)
    joined = UnionFind(len(records))
    for best, members, reason in clusters:
        for i in members:
            joined.union(best, i)
            marked[i] = marked[i].dropped(DEDUPLICATED, reason)
    for number, rows in enumerate(joined.sets()):
        for i in rows:
            marked[i] = replace(marked[i], cluster=number)
    return marked


def _exact(records: list[Record], kept: list[int]) -> list[Cluster]:
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i in kept:
        groups[_key(records[i])].append(i)
    return [
        (best, [i for i in members if i != best], "exact_duplicate")
        for members in groups.values()
        if len(members) > 1
        for best in [min(members, key=lambda i: _rank(records[i]))]
    ]


def _key(record: Record) -> tuple[str, ...]:
    """Rows with equal keys say the same. An entry's title belongs to what it says; a question, about one picture or none, has one
    answer."""
    if record.kind in (QUESTION, RATING):
        return (QUESTION, normalised(record.question or ""), record.image or "")
    if record.kind == CLAIM:
        return (CLAIM, normalised(record.text or ""))
    if record.kind == ENTRY:
        return (ENTRY, normalised(record.title or ""), normalised(record.text or ""))
    return (DOCUMENT, normalised(record.text or ""))


def _rank(record: Record) -> tuple:
    """Smaller is better: curated before found, held out before trained on, untouched before repaired, labelled, longer, earlier."""
    return (
        record.kind != ENTRY, record.split != "eval", -record.weight, record.original is not None, record.domain is None,
        -len(record.text or record.answer or ""), record.row,
    )  # fmt: skip


def _near(records: list[Record], texts: list[int], advance: Advance) -> list[Cluster]:
    if len(texts) < 2:
        return []
    plain = [normalised(records[i].text or "") for i in texts]
    sizes = [HAN_SHINGLE if records[i].lang in ("zh", "ja") else LATIN_SHINGLE for i in texts]
    signature = signatures(plain, sizes)

    @lru_cache(maxsize=CACHED_TEXTS)
    def shingles(n: int) -> Hashes:
        return np.unique(shingle_hashes(plain[n], sizes[n]))

    @cache
    def is_duplicate(m: int, n: int) -> bool:
        if sizes[m] != sizes[n] or (signature[m] == signature[n]).mean() < MIN_ESTIMATE or jaccard(shingles(m), shingles(n)) < MIN_JACCARD:
            return False
        return _may_merge(records[texts[m]], records[texts[n]]) and same_statement(records[texts[m]].text or "", records[texts[n]].text or "")

    groups = UnionFind(len(texts))
    advance(SIGNED)
    for m, n in candidate_pairs(signature, BANDS, ROWS):
        if is_duplicate(m, n):
            groups.union(m, n)
    found = []
    for members in groups.sets():
        # In a chain A ~ B ~ C the ends may differ: a row goes only when it is a duplicate of one that stays.
        members.sort(key=lambda n: _rank(records[texts[n]]))
        stay: dict[int, list[int]] = {}
        for n in members:
            twin = next((s for s in stay if is_duplicate(min(s, n), max(s, n))), None)
            if twin is None:
                stay[n] = []
            else:
                stay[twin].append(n)
        found += [(texts[s], [texts[n] for n in gone], "near_duplicate") for s, gone in stay.items() if gone]
    return found


def _may_merge(a: Record, b: Record) -> bool:
    """Two entries are the same only under the same title."""
    return not (a.kind == ENTRY and b.kind == ENTRY) or normalised(a.title or "") == normalised(b.title or "")


def jaccard(a: Hashes, b: Hashes) -> float:
    """Of two sets given as sorted arrays without repeats."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both) if len(a) or len(b) else 1.0


class UnionFind:
    """Disjoint sets of 0 … size − 1, with path halving."""

    def __init__(self, size: int):
        self._parent = list(range(size))

    def find(self, n: int) -> int:
        while self._parent[n] != n:
            self._parent[n] = self._parent[self._parent[n]]
            n = self._parent[n]
        return n

    def union(self, m: int, n: int) -> None:
        m, n = self.find(m), self.find(n)
        self._parent[max(m, n)] = min(m, n)

    def sets(self) -> list[list[int]]:
        """The sets of two or more, each in ascending order."""
        groups: dict[int, list[int]] = defaultdict(list)
        for n in range(len(self._parent)):
            groups[self.find(n)].append(n)
        return [members for members in groups.values() if len(members) > 1]
