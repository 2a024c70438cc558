"""De-duplication next to datasketch and rensa: what each finds of planted copies, what it takes for one wrongly, and how fast.

    python -m benchmarks.deduplication [documents]

All read the same texts in one process on one core: random texts of about 80 words, copies of a quarter of them with some words
changed, and notices that share a template but state different facts. A copy is found when it is put together with its
original; a text is taken wrongly when it is put together with texts that are not copies of it. The second table is the
demonstration's own web pages, against what is planted in them (demo/documents/planted.json).
"""

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasketch import MinHash, MinHashLSH
from rensa import RMinHash, RMinHashLSH

from workers.corpus.clean import clean
from workers.corpus.deduplicate import MIN_JACCARD, UnionFind, deduplicate
from workers.corpus.minhash import LATIN_SHINGLE, PERMUTATIONS
from workers.corpus.pipeline import read
from workers.corpus.records import DOCUMENT, Record, normalised

DOCUMENTS = 4000
WORDS_PER_TEXT, VOCABULARY = 80, 6000
CHANGED_WORDS = (0, 1, 3, 6)  # of a copy; exact Jaccard about 1, .97, .91 and .82
DEMO = Path(__file__).resolve().parents[1] / "demo"

Clusters = list[list[int]]


@dataclass(frozen=True)
class Planted:
    texts: list[str]
    original: dict[int, int]  # of each copy
    changed: dict[int, int]  # how many words of each copy


def plant(count: int, rng: random.Random) -> Planted:
    words = ["".join(rng.choices("eeeaaiioutnrslcdmphgbfywkv", k=rng.randint(2, 10))) for _ in range(VOCABULARY)]
    copies, notices = count // 4, count // 20
    texts = [rng.choices(words, k=WORDS_PER_TEXT) for _ in range(count - copies - notices)]
    original, changed = {}, {}
    for _ in range(copies):
        source, changes = rng.randrange(count - copies - notices), rng.choice(CHANGED_WORDS)
        places = set(rng.sample(range(WORDS_PER_TEXT), changes))
        original[len(texts)], changed[len(texts)] = source, changes
        texts.append([rng.choice(words) if n in places else word for n, word in enumerate(texts[source])])
    for n in range(notices):
        hour, minute = divmod(n, 60)
        texts.append(
            f"On line {n + 1} the first tram leaves the terminus at {5 + hour}:{minute:02d} and on working days there is a tram every few minutes until late".split()
        )
    return Planted([" ".join(text) for text in texts], original, changed)


def ours(texts: list[str]) -> Clusters:
    done = deduplicate([Record(row=n, id=str(n), kind=DOCUMENT, text=text, lang="en") for n, text in enumerate(texts)])
    clusters: dict[int, list[int]] = {}
    for record in done:
        if record.cluster is not None:
            clusters.setdefault(record.cluster, []).append(record.row)
    return list(clusters.values())


def shingles(text: str) -> list[str]:
    plain = normalised(text)
    return list({plain[n : n + LATIN_SHINGLE] for n in range(len(plain) - LATIN_SHINGLE + 1)})


def by_datasketch(texts: list[str]) -> Clusters:
    index = MinHashLSH(threshold=MIN_JACCARD, num_perm=PERMUTATIONS)
    groups = UnionFind(len(texts))
    for n, signature in enumerate(MinHash.bulk(([s.encode() for s in shingles(text)] for text in texts), num_perm=PERMUTATIONS)):
        for m in index.query(signature):
            groups.union(m, n)
        index.insert(n, signature)
    return groups.sets()


def by_rensa(texts: list[str]) -> Clusters:
    index = RMinHashLSH(threshold=MIN_JACCARD, num_perm=PERMUTATIONS, num_bands=16)
    groups = UnionFind(len(texts))
    for n, text in enumerate(texts):
        signature = RMinHash(num_perm=PERMUTATIONS, seed=1)
        signature.update(shingles(text))
        for m in index.query(signature):
            groups.union(m, n)
        index.insert(n, signature)
    return groups.sets()


def row(name: str, find: Callable[[list[str]], Clusters], planted: Planted) -> str:
    began = time.process_time()
    clusters = find(planted.texts)
    seconds = time.process_time() - began
    cluster_of = {n: number for number, members in enumerate(clusters) for n in members}
    recalls = []
    for changes in CHANGED_WORDS:
        copies = [n for n, words in planted.changed.items() if words == changes]
        recalls.append(sum(n in cluster_of and cluster_of[n] == cluster_of.get(planted.original[n]) for n in copies) / len(copies))
    family = {n: planted.original.get(n, n) for n in range(len(planted.texts))}
    taken = [n for members in clusters for n in members]
    right = [n for members in clusters for n in members if any(m != n and family[m] == family[n] for m in members)]
    return (
        f"| {name} | "
        + " | ".join(f"{recall:.3f}" for recall in recalls)
        + f" | {len(right) / len(taken):.3f} | {len(planted.texts) / seconds:,.0f} |"
    )


def demonstration() -> list[str]:
    planted = json.loads((DEMO / "documents" / "planted.json").read_text(encoding="utf-8"))
    cleaned = clean(read(sorted((DEMO / "documents").glob("*.jsonl"))))
    done = {record.id: record for record in deduplicate(cleaned)}
    copies = planted["duplicate_of"]
    found = sum(done[copy].cluster is not None and done[copy].cluster == done[source].cluster for copy, source in copies.items())
    taken = [record for record in done.values() if record.stage == "deduplicated"]
    right = sum(record.id in copies or record.id in copies.values() for record in taken)
    good = {*planted["clean"], *copies, *(name for group in planted["distinct"] for name in group)}
    lines = [f"| near-duplicates | {len(copies)} | {found / len(copies):.3f} | {right / len(taken):.3f} |"]
    dropped = {record.id: record.reason for record in cleaned if record.stage == "cleaned"}
    for kind, reason in (
        ("advertisement", "advertisement"),
        ("garbled", "garbled_text"),
        ("repeated", "repeated_characters"),
        ("too_short", "too_short"),
    ):
        named = [name for name, why in dropped.items() if why == reason]
        wanted = planted[kind]
        lines.append(
            f"| {kind} | {len(wanted)} | {sum(name in dropped for name in wanted) / len(wanted):.3f} | {sum(n not in good for n in named) / len(named):.3f} |"
        )
    texts = {record.id: record.text for record in cleaned if record.kept}
    restored = sum(texts.get(name) == text for name, text in planted["clean"].items())
    lines.append(f"| clean pages kept and restored to the letter | {len(planted['clean'])} | {restored / len(planted['clean']):.3f} | |")
    return lines


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else DOCUMENTS
    planted = plant(count, random.Random(0))
    print(f"{count:,} texts, {len(planted.original):,} planted copies; recall by words changed of {WORDS_PER_TEXT}\n")
    print("| | " + " | ".join(f"{n} changed" for n in CHANGED_WORDS) + " | precision | documents/s |")
    print("|---|" + "---|" * (len(CHANGED_WORDS) + 2))
    for name, find in (("ours", ours), ("datasketch (bulk, LSH)", by_datasketch), ("rensa (R-MinHash, LSH 16×8)", by_rensa)):
        print(row(name, find, planted), flush=True)
    print("\n| demonstration | planted | recall | precision |\n|---|---|---|---|")
    print("\n".join(demonstration()))


if __name__ == "__main__":
    main()
