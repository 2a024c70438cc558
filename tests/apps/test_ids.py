"""Ids: ULIDs, in the order in which they were made."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from apps import ids
from apps.ids import new_id


def test_an_id_is_a_ulid_of_this_moment():
    made = new_id()
    assert re.fullmatch("[0-7][0-9A-HJKMNP-TV-Z]{25}", made)
    value = 0
    for character in made:
        value = value << 5 | "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(character)
    assert abs((value >> 80) / 1000 - time.time()) < 5


def test_ids_sort_as_they_were_made_even_where_the_clock_is_set_back(monkeypatch):
    made = [new_id() for _ in range(5000)]
    monkeypatch.setattr(ids, "time", SimpleNamespace(time_ns=lambda: time.time_ns() - 10**12))
    made += [new_id() for _ in range(10)]
    assert made == sorted(set(made))


def test_threads_never_make_the_same_id():
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: new_id(), range(4000)))
    assert len(set(made)) == 4000
