"""What every fault test has: a shop with something to sell and a campaign that pays, and a database to break."""

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.utils import timezone

from orders.models import Campaign, Product
from script.services.postgresql import PostgreSQLCluster
from tests.support.emptying import empty


@pytest.fixture(scope="session")
def _breakable_cluster() -> Iterator[PostgreSQLCluster]:
    with TemporaryDirectory(prefix="warren-test-") as directory:
        # When root runs this, PostgreSQL's own user must be able to pass.
        Path(directory).chmod(0o711)
        with PostgreSQLCluster(Path(directory) / "postgresql") as cluster:
            yield cluster


@pytest.fixture
def breakable_database(_breakable_cluster: PostgreSQLCluster, transactional_db: None) -> Iterator[PostgreSQLCluster]:
    """A PostgreSQL that a test may kill and freeze; it holds the test's database, for its processes too.

    It is made whole again afterwards. Only for tests that run on PostgreSQL.
    """
    cluster = _breakable_cluster
    address = urlsplit(cluster.url)
    there = {
        "HOST": address.hostname,
        "PORT": str(address.port),
        "NAME": address.path.strip("/"),
        "USER": address.username,
        "PASSWORD": unquote(address.password or ""),
    }
    # One dict for all threads of this process.
    database = connection.settings_dict
    before = {name: database[name] for name in there}
    connections.close_all()
    database.update(there)
    try:
        call_command("migrate", verbosity=0)
        empty("default")
        yield cluster
    finally:
        cluster.resume()
        cluster.start()
        connections.close_all()
        database.update(before)


@pytest.fixture
def product(request: pytest.FixtureRequest, transactional_db: None) -> Product:
    """A product that does not sell out, in a shop whose campaign gives every order a red packet."""
    if "breakable_database" in request.fixturenames:
        request.getfixturevalue("breakable_database")
    Campaign.objects.create(
        name="Lucky days",
        budget=Decimal("1000000.00"),
        min_amount=Decimal("1.00"),
        max_amount=Decimal("8.88"),
        ends_at=timezone.now() + timedelta(days=1),
    )
    return Product.objects.create(
        sku="TEA", slug="tea", name="Tea", price=Decimal("38.00"), stock=1_000_000, weight_grams=250
    )
