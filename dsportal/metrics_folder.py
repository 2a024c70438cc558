"""The files in which the processes of a machine count for Prometheus, and what becomes of those of the dead.

prometheus_client gives each process files of its own, which outlive it: its counts must not get lost. With every restart there would be more of them to
read at each look. So the dead's are summed up in one file of each kind, and deleted. Imports no Django: the supervisor does this. It alone may: a
merger that is killed between two of its steps would leave counts twice, and when the supervisor starts it begins with an empty folder.
"""

import fcntl
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DEAD = "dead"  # in place of a process's number
LOCK_FILE = "lock"
_OF_A_PROCESS = re.compile(r"(?P<kind>[a-z]+(_[a-z]+)?)_(?P<pid>\d+)\.db")
Counted = tuple[float, float]  # a value, and when it was set (only where that decides)


def _added(one: Counted, other: Counted) -> Counted:
    return one[0] + other[0], 0.0


def _newer(one: Counted, other: Counted) -> Counted:
    return max(one, other, key=lambda counted: counted[1])


_MERGED: dict[str, Callable[[Counted, Counted], Counted]] = {
    "counter": _added, "histogram": _added, "summary": _added, "gauge_mostrecent": _newer,
}  # fmt: skip


@contextmanager
def held_still(folder: Path, *, to_change: bool = False) -> Iterator[None]:
    """Files neither come together nor go meanwhile: whoever reads them all finds each count once. Readers do not hinder each other."""
    with (folder / LOCK_FILE).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if to_change else fcntl.LOCK_SH)
        yield


def bury_dead(folder: Path) -> None:
    """Take over what processes that are gone have counted, and forget what they held (gauges of the living)."""
    counted = [(path, found) for path in folder.resolve().iterdir() if (found := _OF_A_PROCESS.fullmatch(path.name))]
    held = {pid: _files_of(pid) for pid in {found["pid"] for _path, found in counted}}
    dead = [(path, found["kind"]) for path, found in counted if str(path) not in held[found["pid"]]]
    if not dead:
        return
    with held_still(folder, to_change=True):
        for kind in {kind for _path, kind in dead}:
            paths = [path for path, of in dead if of == kind]
            if kind in _MERGED:
                _merge(folder, kind, paths)
            if kind in _MERGED or kind.startswith("gauge_live"):
                for path in paths:
                    path.unlink()


def _merge(folder: Path, kind: str, paths: list[Path]) -> None:
    from prometheus_client.mmap_dict import MmapedDict  # only here: whoever reads is in a hurry, and has its own

    target, both = folder / f"{kind}_{DEAD}.db", _MERGED[kind]
    totals: dict[str, Counted] = {}
    for path in [target, *paths]:
        if not path.exists() or not path.stat().st_size:  # its process died before it had written anything
            continue
        for key, value, at, _position in MmapedDict.read_all_values_from_file(str(path)):
            totals[key] = both(totals[key], (value, at)) if key in totals else (value, at)
    written = target.with_suffix(".tmp")
    written.unlink(missing_ok=True)
    merged = MmapedDict(str(written))
    for key, (value, at) in totals.items():
        merged.write_value(key, value, at)
    merged.close()
    written.rename(target)


def _files_of(pid: str) -> set[str]:
    """What the process of that number has open: its own counts, for as long as it lives. Another one may have its number by now, and may be anybody's."""
    found = set()
    with suppress(OSError):
        for opened in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # closed in between
                found.add(str(opened.readlink()))
    return found
