"""A PostgreSQL server for the length of a test: its own folder, a socket in it, no network port."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEBIAN = Path("/usr/lib/postgresql")


def programs() -> Path | None:
    """The folder with initdb and pg_ctl: in Debian's place for the newest version, else beside what is on the path."""
    versions = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    found = versions[-1] if versions else shutil.which("initdb")
    return Path(found).parent if found else None


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database for DATABASE_URL. The server refuses to run as root: then as the user `postgres`."""
    binaries = programs()
    if binaries is None:
        raise FileNotFoundError("PostgreSQL is not installed")
    other = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has at most 107 characters
    if other:
        os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
    prefix = ["runuser", "-u", "postgres", "--"] if other else []

    def run(*argv: str) -> None:
        subprocess.run([*prefix, *argv], check=True, cwd="/", stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    data = folder / "data"
    quick = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"  # its data is thrown away
    try:
        run(str(binaries / "initdb"), "-D", str(data), "-U", "dsportal", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C.UTF-8")
        run(str(binaries / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -h '' {quick}", "start")
        try:
            yield f"postgres://dsportal@/postgres?host={folder}"
        finally:
            run(str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
