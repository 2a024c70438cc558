import os
import socket

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dsportal.settings")
django = get_wsgi_application()

from apps.monitoring.presence import keep_presence  # noqa: E402 — only once Django is set up
from apps.monitoring.traces.edge import Edge  # noqa: E402

application = Edge(django)
keep_presence("web", f"web@{socket.gethostname()}:{os.getpid()}")
