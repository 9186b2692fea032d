"""What a Redis URL means, and that no password is ever shown."""

from __future__ import annotations

import ssl

import pytest

from flotta.errors import ConfigError
from flotta.redis import Endpoint, LinkOptions

SECRET = "c4nary-s3cret"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", "localhost:6379"),
        ("redis://10.0.0.1:6380/3", "10.0.0.1:6380/3"),
        (f"redis://user:{SECRET}@db.example:7000/1", "db.example:7000/1"),
        (f"redis://:{SECRET}@[::1]:7000", "[::1]:7000"),
        (f"rediss://user:{SECRET}@db.example", "db.example:6379"),
        (f"unix://user:{SECRET}@/run/redis.sock?db=2", "unix:/run/redis.sock/2"),
        ("redis://localhost?db=4", "localhost:6379/4"),
    ],
)
def test_address_says_where_without_credentials(url: str, address: str) -> None:
    endpoint = Endpoint.from_url(url)
    assert str(endpoint) == endpoint.address == address
    assert SECRET not in repr(endpoint)


async def test_login_is_decoded_and_defaults_to_the_default_user() -> None:
    assert await Endpoint.from_url("redis://us%40er:p%2Fss@h").login() == ("us@er", "p/ss")
    assert await Endpoint.from_url("redis://:pw@h").login() == ("default", "pw")
    assert await Endpoint.from_url("redis://h").login() is None
    assert await Endpoint.from_url("redis://guest@h").login() == ("guest", ""), "never the default user instead"


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        f"http://user:{SECRET}@h",
        f"redis://user:{SECRET}@h/notanumber",
        f"redis://user:{SECRET}/with-slash@h:6379",
        f"redis://user:[{SECRET}]@h",
        f"redis://user:{SECRET}@h:99999",
        f"redis://user:{SECRET}@h?no_such_option=1",
        f"redis://user:{SECRET}@h?db=x",
        f"rediss://user:{SECRET}@h?ssl_ca_certs=/does/not/exist.pem",
        "",
    ],
)
def test_wrong_url_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Endpoint.from_url(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__, "a traceback must not show what urllib quotes"


def test_tls_checks_certificate_and_host_unless_told_otherwise() -> None:
    strict = Endpoint.from_url("rediss://h").tls
    assert strict is not None
    assert strict.verify_mode is ssl.CERT_REQUIRED
    assert strict.check_hostname
    loose = Endpoint.from_url("rediss://h?ssl_cert_reqs=none").tls
    assert loose is not None
    assert loose.verify_mode is ssl.CERT_NONE
    assert Endpoint.from_url("redis://h").tls is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("command_timeout_s", 0),
        ("command_timeout_s", float("inf")),
        ("connect_timeout_s", -1),
        ("in_flight_max", 0),
        ("in_flight_max", 1.5),
        ("waiting_max", True),
        ("reconnect_max_s", 0.01),
        ("heartbeat_s", float("nan")),
        ("retries", -1),
        ("retry_delay_s", -0.1),
        ("client_name", "two words"),
    ],
)
def test_option_that_makes_no_sense_stops_at_birth(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        LinkOptions(**{name: value})  # type: ignore[arg-type]
