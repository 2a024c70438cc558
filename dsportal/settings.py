"""The one place that reads the environment."""

import os
import secrets
from pathlib import Path

import dj_database_url
from csp.constants import NONE, SELF

BASE_DIR = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("DSPORTAL_HOME") or BASE_DIR / "var").resolve()


def _flag(name: str, default: bool) -> bool:
    return os.environ.get(name, "1" if default else "0").lower() in ("1", "true", "yes", "on")


def _words(name: str) -> list[str]:
    return [word.strip() for word in os.environ.get(name, "").split(",") if word.strip()]


def _secret_key() -> str:
    """From the environment, else a random one kept beside the data, readable by its owner only."""
    if key := os.environ.get("DSPORTAL_SECRET_KEY"):
        return key
    path = HOME / "secret_key"
    HOME.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        key = secrets.token_urlsafe(48)
        file.write(key)
    return key


DEBUG = _flag("DSPORTAL_DEBUG", default=False)
SECRET_KEY = _secret_key()
ALLOWED_HOSTS = _words("DSPORTAL_ALLOWED_HOSTS") or ["*"]
CSRF_TRUSTED_ORIGINS = _words("DSPORTAL_TRUSTED_ORIGINS")

# -- the portal itself
DEMO = _flag("DSPORTAL_DEMO", default=True)
ADMIN_PASSWORD = os.environ.get("DSPORTAL_ADMIN_PASSWORD", "")
ADMIN_TOKEN = os.environ.get("DSPORTAL_ADMIN_TOKEN", "")
ARTIFACTS_URL = os.environ.get("ARTIFACTS_URL") or str(HOME / "artifacts")
WORK_ROOT = HOME / "work"  # of jobs: specs, logs, checkpoints; may be removed when no job is running
IMPORT_ROOTS = [HOME / "imports", *(Path(p) for p in os.environ.get("DSPORTAL_IMPORT_ROOTS", "").split(os.pathsep) if p)]
IMPORT_URLS = _words("DSPORTAL_IMPORT_URLS")  # beginnings of fsspec URLs that models may be imported from, such as s3://models/
UPSTREAM_HOSTS = _words("DSPORTAL_UPSTREAM_HOSTS")  # hosts (with or without a port, or *.below.one) that questions may be sent to
MAX_UPLOAD_BYTES = int(os.environ.get("DSPORTAL_MAX_UPLOAD_BYTES", 2 * 1024**3))
MAX_JSON_BYTES = 32 * 1024**2  # of one request's body; larger data comes as a file
GUEST_CHAT = _flag("DSPORTAL_GUEST_CHAT", default=False)
CACHE_BYTES = int(os.environ.get("DSPORTAL_CACHE_BYTES", 64 * 1024**2))
NEAR_CACHE_BYTES = int(os.environ.get("DSPORTAL_NEAR_CACHE_BYTES", 8 * 1024**2))  # of cached answers, in each web process beside Redis
ROUTES_KEPT_SECONDS = 2.0  # what a web process remembers of what is live, as long as nobody says that it changed
ANSWERS_KEPT_DAYS = float(os.environ.get("DSPORTAL_ANSWERS_KEPT_DAYS", 0))  # unrated ones; 0: for ever
REDACT = _words("DSPORTAL_REDACT")  # of what is kept of conversations: email, card, phone, ip, picture
REDACT_PATTERN = os.environ.get("DSPORTAL_REDACT_PATTERN", "")  # and whatever this regular expression finds
MAX_IN_FLIGHT = int(os.environ.get("DSPORTAL_MAX_IN_FLIGHT", 256))  # answers being made or waited for; more are told to come back
WEB_THREADS = int(os.environ.get("DSPORTAL_WEB_THREADS", 48))  # of one web process, as its server was told
SPARE_THREADS = 8  # which no question takes: they carry pages, and refusals
MAX_ASKING = int(os.environ.get("DSPORTAL_MAX_ASKING", 40))  # questions that one web process is at while the portal is full
REQUESTS_PER_MINUTE = int(os.environ.get("DSPORTAL_REQUESTS_PER_MINUTE", 0))  # of an API token without limits of its own; 0: as many as it likes
TOKENS_PER_MINUTE = int(os.environ.get("DSPORTAL_TOKENS_PER_MINUTE", 0))
ANSWER_TIMEOUT_SECONDS = float(os.environ.get("DSPORTAL_ANSWER_TIMEOUT", 60))
NO_WORKER_SECONDS = float(os.environ.get("DSPORTAL_NO_WORKER_SECONDS", 30))  # so long a question waits for an inference worker where none lives
REPLICAS_FILE = os.environ.get("DSPORTAL_REPLICAS_FILE", "")  # where the supervisor reads how many inference workers there should be
MAX_REPLICAS = int(os.environ.get("DSPORTAL_MAX_REPLICAS", 1))
SCALE_IN_SECONDS = float(os.environ.get("DSPORTAL_SCALE_IN_SECONDS", 60))  # what was needed within this time is kept
CORES = os.cpu_count() or 1
JOB_SLOTS = int(os.environ.get("DSPORTAL_JOB_SLOTS", 1))  # heavy jobs at once in one worker
JOB_NICENESS = int(os.environ.get("DSPORTAL_JOB_NICENESS", 10))
JOB_HEARTBEAT_SECONDS = 1.0
METRICS_PORT = int(os.environ.get("DSPORTAL_METRICS_PORT", 0))  # of a worker's own /metrics; 0: the web process shows them all
TRACES_PER_SECOND = int(
    os.environ.get("DSPORTAL_TRACES_PER_SECOND", 50)
)  # of answers from the cache in one process; those of engines are all told. 0: none
TRACES_KEPT = int(os.environ.get("DSPORTAL_TRACES_KEPT", 5000))  # and as many again that were slow or failed
TRACE_SECONDS = int(os.environ.get("DSPORTAL_TRACE_SECONDS", 24 * 3600))
OTLP_ENDPOINT = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")  # spans go there too
MIN_FREE_BYTES = 200 * 1024**2
MAX_ENGINES = int(os.environ.get("DSPORTAL_MAX_ENGINES", 3))  # versions an inference worker holds at once
ENGINES_BYTES = int(os.environ.get("DSPORTAL_ENGINES_BYTES", 4 * 1024**3))  # of these: weights, and what their keys and values may take
ENGINE_CACHE_BYTES = int(os.environ.get("DSPORTAL_ENGINE_CACHE_BYTES", 512 * 1024**2))  # keys and values of one version's sequences
JOB_THREADS = int(os.environ.get("DSPORTAL_JOB_THREADS", CORES))
DEVICE = os.environ.get("DSPORTAL_DEVICE", "cpu")  # of inference workers: "cuda" for a GPU
INFERENCE_THREADS = int(os.environ.get("DSPORTAL_INFERENCE_THREADS", max(1, CORES // 2)))

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "csp",
    "django_filters",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "apps.accounts",
    "apps.jobs",
    "apps.datasets",
    "apps.training",
    "apps.registry",
    "apps.experiments",
    "apps.feedback",
    "apps.serving",
    "apps.batches",
    "apps.monitoring",
    "apps.demonstration",
    "apps.portal",
]

MIDDLEWARE = [
    "apps.accounts.middleware.RequestIdMiddleware",  # whatever is refused, and wherever, has an id
    "apps.serving.door.DoorMiddleware",
    "apps.database.ReleaseMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "apps.accounts.people.ContentPolicy",
    "apps.accounts.people.Sessions",
    "apps.accounts.people.Language",
    "django.middleware.common.CommonMiddleware",
    "apps.accounts.people.Csrf",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "apps.accounts.people.Messages",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "apps.monitoring.traces.middleware.JourneyMiddleware",
    "apps.accounts.idempotency.IdempotencyMiddleware",
]

ROOT_URLCONF = "dsportal.urls"
WSGI_APPLICATION = "dsportal.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "apps.portal.context.shell",
            ],
        },
    },
]

# -- state
DATABASES = {"default": dj_database_url.parse(os.environ.get("DATABASE_URL") or f"sqlite:///{HOME / 'dsportal.sqlite3'}", conn_health_checks=True)}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # Measured: 1,500 transactions/s with four writers and no lock error; DEFERRED fails within seconds.
    DATABASES["default"]["OPTIONS"] = {
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA mmap_size=134217728; PRAGMA cache_size=-8000;",
    }
    DATABASES["default"] |= {"CONN_MAX_AGE": 600, "CONN_HEALTH_CHECKS": False}
    DATABASES["default"]["TEST"] = {"NAME": os.environ.get("DSPORTAL_TEST_DATABASE") or None}
elif DATABASES["default"]["ENGINE"].endswith("postgresql"):
    # Of one process; its threads are many more, and a connection of each would soon be more than the server has.
    most = int(os.environ.get("DSPORTAL_DATABASE_CONNECTIONS", 12))
    DATABASES["default"].setdefault("OPTIONS", {})["pool"] = {"min_size": 1, "max_size": most, "max_idle": 60, "timeout": 10}
REDIS_URL = os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379/0"
CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": REDIS_URL, "KEY_PREFIX": "dsportal:django"}}
SESSION_ENGINE = "django.contrib.sessions.backends.cached_db"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# -- people
AUTH_USER_MODEL = "accounts.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"
SESSION_COOKIE_NAME = "dsportal_session"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
CSRF_FAILURE_VIEW = "apps.portal.views.csrf_failure"
_HTTPS = _flag("DSPORTAL_HTTPS", default=False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = _HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if _HTTPS else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if _HTTPS else None
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$", r"^metrics$"]
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "object-src": [NONE],
        "base-uri": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    }
}
DATA_UPLOAD_MAX_MEMORY_SIZE = 8 * 1024**2
DATA_UPLOAD_MAX_NUMBER_FIELDS = 2000
FILE_UPLOAD_TEMP_DIR = os.environ.get("DSPORTAL_UPLOAD_FOLDER") or None

# -- words
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("zh-hans", "简体中文")]
LOCALE_PATHS = [BASE_DIR / "locale"]
USE_I18N = USE_TZ = True
FORMAT_MODULE_PATH = "dsportal.formats"
TIME_ZONE = "UTC"

# -- who is told of alerts
ALERT_WEBHOOKS = _words("DSPORTAL_ALERT_WEBHOOKS")  # URLs that take Slack's {"text": …}
ALERT_EMAILS = _words("DSPORTAL_ALERT_EMAILS")
PUBLIC_URL = os.environ.get("DSPORTAL_PUBLIC_URL", "").rstrip("/")  # for links in messages
EMAIL_HOST = os.environ.get("DSPORTAL_SMTP_HOST", "localhost")
EMAIL_PORT = int(os.environ.get("DSPORTAL_SMTP_PORT", 25))
EMAIL_HOST_USER = os.environ.get("DSPORTAL_SMTP_USER", "")
EMAIL_HOST_PASSWORD = os.environ.get("DSPORTAL_SMTP_PASSWORD", "")
EMAIL_USE_TLS = _flag("DSPORTAL_SMTP_TLS", default=False)
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = os.environ.get("DSPORTAL_MAIL_FROM", "dsportal@localhost")

# -- files
STATIC_URL = "/static/"
STATIC_ROOT = Path(os.environ.get("DSPORTAL_STATIC_ROOT") or HOME / "static")
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "dsportal.staticfiles.StaticFiles"},
}
WHITENOISE_MAX_AGE = 3600

# -- REST
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "apps.accounts.authentication.BearerAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["apps.accounts.permissions.ReadOrOperate"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": [
        "apps.accounts.parsers.BoundedJSONParser",
        "rest_framework.parsers.MultiPartParser",
        "rest_framework.parsers.FormParser",
    ],
    "DEFAULT_PAGINATION_CLASS": "apps.accounts.pagination.NewestFirst",
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "apps.accounts.problems.problem_details",
    "PAGE_SIZE": 50,
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "DSPortal",
    "DESCRIPTION": "Operate Mixture-of-Experts language models: data, training, compression, gates, experiments, serving.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "SCHEMA_PATH_PREFIX": "/api/v1",  # what follows it names the group in the reference
    "ENUM_NAME_OVERRIDES": {
        "JobStatus": "apps.jobs.models.Job.Status",
        "JobKind": "apps.jobs.models.Job.Kind",
        "AnswerStatus": "apps.serving.models.Answer.Status",
        "ExperimentStatus": "apps.experiments.models.Experiment.Status",
        "AlertState": "apps.monitoring.models.Alert.State",
        "VersionState": "apps.registry.models.ModelVersion.State",
        "VersionKind": "apps.registry.models.ModelVersion.Kind",
        "DatasetOrigin": "apps.datasets.models.Dataset.Origin",
        "TrainingMethod": "apps.training.models.TrainingJob.Method",
        "DeploymentReason": "apps.serving.models.Deployment.Reason",
        "CompressionMethod": "apps.registry.models.CompressionJob.Method",
        "Precision": "apps.training.models.TrainingJob.Precision",
        "AdvisedPrecision": "apps.monitoring.advisor.hardware.PRECISION_CHOICES",
        "Router": "apps.training.models.TrainingJob.Router",
        "Role": "apps.accounts.models.User.Role",
    },
}

# -- Celery
CELERY_BROKER_URL = REDIS_URL
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_DEFAULT_QUEUE = "jobs"
CELERY_TASK_ROUTES = {"dsportal.embed": {"queue": "inference"}, "dsportal.beat.*": {"queue": "beat"}}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# An unacknowledged message is delivered again after 12 s; the sweep that looks for such runs every second (its default takes minutes).
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 12,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    "socket_timeout": 15,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
}
CELERY_BEAT_SCHEDULE_FILENAME = str(HOME / "beat-schedule")
CELERY_BEAT_SCHEDULE = {
    "requeue lost jobs": {"task": "dsportal.beat.reap", "schedule": 3.0, "options": {"expires": 6}},
    "roll up the metrics": {"task": "dsportal.beat.roll_up", "schedule": 5.0, "options": {"expires": 10}},
    "write down the answers": {"task": "dsportal.beat.settle", "schedule": 1.0, "options": {"expires": 2}},
    "forget old answers": {"task": "dsportal.beat.forget", "schedule": 3600.0, "options": {"expires": 600}},
    "scale the inference workers": {"task": "dsportal.beat.scale", "schedule": 1.0, "options": {"expires": 2}},
    "evaluate the alerts": {"task": "dsportal.beat.alerts", "schedule": 5.0, "options": {"expires": 10}},
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"request_id": {"()": "apps.accounts.middleware.RequestIdFilter"}},
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["request_id"]}},
    "root": {"handlers": ["console"], "level": os.environ.get("DSPORTAL_LOG_LEVEL", "INFO")},
    "loggers": {
        "django.request": {"level": "ERROR"},
        "celery": {"level": "WARNING"},
        "kombu": {"level": "WARNING"},
        "httpx": {"level": "WARNING"},
        "fontTools": {"level": "WARNING"},
    },
}
