"""Everything a start needs before the processes run: tables, static files, the first administrator, the demonstration's row."""

import hashlib
import json
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand

from apps.accounts.services import ensure_admin
from apps.demonstration.services import begin


class Command(BaseCommand):
    help = "Migrate, collect static files where they changed, make the first administrator. Prints what is new as one JSON line."

    def handle(self, *args, **options):
        settings.WORK_ROOT.mkdir(parents=True, exist_ok=True)
        call_command("migrate", interactive=False, verbosity=0)
        self._collect_static()
        password, token = ensure_admin()
        begin()
        self.stdout.write(json.dumps({"password": password, "token": token}))

    def _collect_static(self) -> None:
        """Compressing takes seconds, so only when a file is new, or the way they are stored."""
        files = sorted(p for p in (Path(settings.BASE_DIR) / "static").rglob("*") if p.is_file())
        seen = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        state = hashlib.sha256(repr([settings.STORAGES["staticfiles"], *seen]).encode()).hexdigest()
        stamp = Path(settings.STATIC_ROOT) / ".collected"
        if not stamp.exists() or stamp.read_text() != state:
            call_command("collectstatic", interactive=False, verbosity=0, ignore_patterns=["*redoc*"])
            stamp.write_text(state)
