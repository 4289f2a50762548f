"""Settings of the tests: the project's, with the documented defaults, whatever the developer's own .env says."""

import os

from script.environment import documented_variables

#: Nobody answers here: a test that wants a broker asks for the `vhost` fixture.
NO_BROKER = "amqp://127.0.0.1:1/"
#: Nor here: without it the usual port of that host would be asked, where the developer's own broker may answer.
NO_MANAGEMENT = "http://127.0.0.1:1"

os.environ.update(documented_variables())
# The zone of .env.example is the demo's.
os.environ.update(TIME_ZONE="UTC")
os.environ.update(SECRET_KEY="only-for-tests", AMQP_URL=NO_BROKER, AMQP_MANAGEMENT_URL=NO_MANAGEMENT, RELAY_THREAD="0")
os.environ.setdefault("DATABASE_URL", "sqlite:///:memory:")

from messaging import conf  # noqa: E402
from project.settings import *  # noqa: E402, F403

# So short that a test sees a pause pass.
conf.POLL_INTERVAL, conf.DECLARE_INTERVAL, conf.RECONNECT_MAX, conf.DRAIN_TIMEOUT = 0.1, 0.5, 0.5, 1.0

# The deliberate slowness of the real one buys nothing here.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Static files are looked up where they are: nothing was collected.
WHITENOISE_AUTOREFRESH = True
