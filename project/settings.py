"""The settings of the Warren project. Only this file reads the environment, by the readers of `environment.py`.

`.env.example` describes every variable. A value that cannot be understood stops the process at start, with the
variable's name (`ImproperlyConfigured`).
"""

from contextlib import suppress
from typing import Any

from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from project import logs
from project.celery_tls import celery_tls
from project.environment import BASE_DIR, env, flag, hosts, items, one_of, origins, seconds, time_zone, whole_number

VAR_DIR = BASE_DIR / "var"


def secret_key() -> str:
    """Read SECRET_KEY. Only with DEBUG it has a default."""
    key: str = env.str("SECRET_KEY", default="")
    if not key.strip() and not DEBUG:
        raise ImproperlyConfigured("SECRET_KEY is not set; it must be a long random text that only this site knows.")
    return key or "only-for-development"


# --- Django ------------------------------------------------------------------------------------------------

DEBUG = flag("DEBUG", default=False)
SECRET_KEY = secret_key()
ALLOWED_HOSTS = hosts("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = origins("CSRF_TRUSTED_ORIGINS", default=[])

INSTALLED_APPS = [
    "project.apps.AdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "csp",
    "django_htmx",
    "django_structlog",
    "phonenumber_field",
    "messaging",
    "messaging.mq",
    "messaging.tutorial",
    "orders",
]

MIDDLEWARE = [
    "messaging.middleware.probes",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "orders.middleware.LanguageMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "django_structlog.middlewares.RequestMiddleware",
]

ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
ASGI_APPLICATION = "project.asgi.application"

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.debug",
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "orders:mine"
LOGOUT_REDIRECT_URL = "orders:catalogue"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en"
# Of the shop: pages, texts, names of products. All but the first have a catalogue in orders/locale.
LANGUAGES = [("en", "English"), ("zh-hans", "Simplified Chinese"), ("zh-hant", "Traditional Chinese")]
TIME_ZONE = time_zone("TIME_ZONE", default="UTC")
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = VAR_DIR / "static"
if not DEBUG:
    STORAGES = {
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
    }


# --- Database ----------------------------------------------------------------------------------------------

if not env.str("DATABASE_URL", default=""):
    # SQLite creates the file, but not its folder. If the folder cannot be created, the first command says so.
    with suppress(OSError):
        VAR_DIR.mkdir(exist_ok=True)
database_url = env.str("DATABASE_URL", default=f"sqlite:///{VAR_DIR / 'db.sqlite3'}").strip()
if not database_url.startswith(("sqlite:///", "postgres://", "postgresql://")):
    raise ImproperlyConfigured("DATABASE_URL must begin with sqlite:/// or postgres://")
try:
    database: dict[str, Any] = env.db_url_config(database_url)
except ValueError:
    # The address is not repeated: the wrong port may be part of the password.
    raise ImproperlyConfigured("DATABASE_URL: the port must be a number; a ':' in a password is %3A") from None

if database["ENGINE"] == "django.db.backends.sqlite3":
    # WAL lets readers and one writer work in parallel. IMMEDIATE takes the write lock at BEGIN: without it, a
    # transaction that reads first and writes later fails at once, whatever the timeout. FULL: a commit survives a power
    # cut.
    database["OPTIONS"] = {
        "timeout": 20,
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
    } | database.get("OPTIONS", {})
else:
    # A server that disappears silently (power, network) is noticed after 35 s; by default it takes hours.
    keepalive = {"keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 35_000}
    database["OPTIONS"] = {"connect_timeout": 5} | keepalive | database.get("OPTIONS", {})
    database["CONN_MAX_AGE"] = whole_number("CONN_MAX_AGE", default=database.get("CONN_MAX_AGE", 60))
    database["CONN_HEALTH_CHECKS"] = True
DATABASES = {"default": database}


# --- Messaging ---------------------------------------------------------------------------------------------

AMQP_URLS = items("AMQP_URL", default=["amqp://guest:guest@127.0.0.1:5672/%2F"])
TLS_FILES = {
    "TLS_CA_FILE": env.str("AMQP_TLS_CA_FILE", default=""),
    "TLS_CERT_FILE": env.str("AMQP_TLS_CERT_FILE", default=""),
    "TLS_KEY_FILE": env.str("AMQP_TLS_KEY_FILE", default=""),
}

MESSAGING: dict[str, Any] = {
    "AMQP_URLS": AMQP_URLS,
    **TLS_FILES,
    "MANAGEMENT_URL": env.str("AMQP_MANAGEMENT_URL", default=""),
    "APP_ID": "warren",
    "EXCHANGE": "orders.events",
    "RELAY_THREAD": flag("RELAY_THREAD", default=True),
    "LOG_TO_BROKER": flag("LOG_TO_BROKER", default=False),
}


# --- Celery: housekeeping only -----------------------------------------------------------------------------

# Use a separate vhost if the broker's accounts are separate: Celery declares queues of its own. After '?' it has other
# options, and fails on ours.
CELERY_BROKER_URL = items("CELERY_BROKER_URL", default=[]) or [url.partition("?")[0] for url in AMQP_URLS]
CELERY_BROKER_USE_SSL = celery_tls(CELERY_BROKER_URL, *TLS_FILES.values())
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {"confirm_publish": True, "confirm_timeout": 10}
CELERY_ACCEPT_CONTENT = CELERY_RESULT_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_DEFAULT_QUEUE = "warren.celery"
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
# In memory. The default scheduler keeps its times in a pickle, which can run the code of any writer to the file.
CELERY_BEAT_SCHEDULER = "celery.beat:Scheduler"
CELERY_BEAT_SCHEDULE = {
    "prune messages": {"task": "messaging.prune", "schedule": 3600.0, "options": {"expires": 3600}},
    "prune visits": {"task": "orders.prune", "schedule": 3600.0, "options": {"expires": 3600}},
    "reconcile messages": {"task": "messaging.reconcile", "schedule": 60.0, "options": {"expires": 60}},
    # Consumers do it themselves, each second; this is for those that have no process running.
    "run effects": {"task": "messaging.run_effects", "schedule": 60.0, "options": {"expires": 60}},
}


# --- The shop ----------------------------------------------------------------------------------------------

SHOP_CURRENCY = env.str("SHOP_CURRENCY", default="CNY")
PHONENUMBER_DEFAULT_REGION = env.str("SHOP_PHONE_REGION", default="CN")
PHONENUMBER_DB_FORMAT = "E164"
PHONENUMBER_DEFAULT_FORMAT = "INTERNATIONAL"
# Orders that the shop accepts within 15 minutes, or a day; 0: any number. Each sends texts to a typed number.
ORDERS_PER_PHONE = whole_number("ORDERS_PER_PHONE", default=5)
ORDERS_PER_PHONE_A_DAY = whole_number("ORDERS_PER_PHONE_A_DAY", default=10)
ORDERS_PER_BROWSER = whole_number("ORDERS_PER_BROWSER", default=10)
ORDERS_PER_ADDRESS = whole_number("ORDERS_PER_ADDRESS", default=20)
SMS_BACKEND = env.str("SMS_BACKEND", default="orders.sms.DatabaseBackend")
SMS_GATEWAY_URL = env.str("SMS_GATEWAY_URL", default="")
SMS_GATEWAY_TOKEN = env.str("SMS_GATEWAY_TOKEN", default="")
SMS_GATEWAY_TIMEOUT = seconds("SMS_GATEWAY_TIMEOUT", default=10)
SMS_GATEWAY_HONOURS_KEYS = flag("SMS_GATEWAY_HONOURS_KEYS", default=False)
SMS_GATEWAY_KEY_HEADER = env.str("SMS_GATEWAY_KEY_HEADER", default="Idempotency-Key")
SMS_GATEWAY_ASK_URL = env.str("SMS_GATEWAY_ASK_URL", default="")


# --- Security ----------------------------------------------------------------------------------------------

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "img-src": [SELF, "data:"],
        "object-src": [NONE],
        "base-uri": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    }
}
DEFAULT_EXCEPTION_REPORTER_FILTER = "project.error_reports.MaskingFilter"
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"
SESSION_ENGINE = "orders.sessions"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
LANGUAGE_COOKIE_AGE = 31_536_000
LANGUAGE_COOKIE_HTTPONLY = True
LANGUAGE_COOKIE_SAMESITE = "Lax"
HTTPS = flag("HTTPS", default=False)
SESSION_COOKIE_SECURE = HTTPS
CSRF_COOKIE_SECURE = HTTPS
LANGUAGE_COOKIE_SECURE = HTTPS
SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = HTTPS
SECURE_HSTS_PRELOAD = HTTPS
PROXIES = whole_number("PROXIES", default=1 if HTTPS else 0)
if HTTPS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    # Browsers accept cookies with these names only from this host, by HTTPS; other hosts of the domain cannot set them.
    SESSION_COOKIE_NAME = "__Host-sessionid"
    CSRF_COOKIE_NAME = "__Host-csrftoken"
    LANGUAGE_COOKIE_NAME = "__Host-language"


# --- Logging: one event a line, key=value or JSON ----------------------------------------------------------

LOG_LEVEL = one_of("LOG_LEVEL", "INFO", "DEBUG", "WARNING", "ERROR")
LOG_FORMAT = one_of("LOG_FORMAT", "console", "json")

LOGGING = logs.configure(LOG_LEVEL, LOG_FORMAT, to_broker=MESSAGING["LOG_TO_BROKER"])
