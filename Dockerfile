# One image for every role; docker-compose.yml names the command.
# PyTorch: the general index gives the CUDA build. For the smaller CPU build, pass PyTorch's own CPU index as PIP_EXTRA_INDEX_URL.
FROM python:3.11-slim-bookworm AS app
ARG PIP_EXTRA_INDEX_URL=
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 DSPORTAL_HOME=/data OMP_WAIT_POLICY=PASSIVE MALLOC_ARENA_MAX=2
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 curl && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 dsportal && mkdir /data && chown dsportal /data
WORKDIR /app
COPY requirements.lock .
RUN pip install -r requirements.lock
COPY --chown=dsportal . .
USER dsportal
VOLUME /data
EXPOSE 8000
CMD ["python", "-m", "granian", "--interface", "wsgi", "--host", "0.0.0.0", "--port", "8000", "--workers", "2", "--blocking-threads", "48", "--http1-header-read-timeout", "60000", "dsportal.wsgi:application"]
