import gc
import os
import socket

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dsportal.settings")
django = get_wsgi_application()

from django.urls import get_resolver  # noqa: E402 — only once Django is set up

from apps.monitoring.presence import keep_presence  # noqa: E402
from apps.monitoring.traces.edge import Edge  # noqa: E402

get_resolver().url_patterns  # noqa: B018 — with all that they import, which the first request would do otherwise
# All of that stays. Python's garbage collector looked through it every few thousand requests, while nobody else could go on: 0.1 s for nothing.
gc.collect()
gc.freeze()

application = Edge(django)
keep_presence("web", f"web@{socket.gethostname()}:{os.getpid()}")
