"""Whatever the password in an address: no message, log or event holds a part of it."""

import contextlib
import logging
import re
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triangulation_pipeline.address import by_proxy, parse_address
from triangulation_pipeline.client import Webserver, WebserverError
from triangulation_pipeline.storage import s3
from triangulation_pipeline.storage.engine import open_database
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.objects import S3Location
from triangulation_pipeline.storage.settings import read_settings
from triangulation_pipeline.storage.stores import open_store
from triangulation_pipeline_tests.conftest import use_s3

# The first end an address's part, or begin a code, somewhere.
CHARACTERS = [*"@/#?%:[ \u00fc"]
MORE_CHARACTERS = [*"]&+,;=!$'()*\\\"<>^`{|}~", "%4", "%zz", "%40", "%00", "\t", "€", "東", "\u202e", "@@", "/@"]
PARTS = ("hunter", "2secret", "3rd")


def passwords(character: str) -> list[str]:
    """The character between the parts of a password, raw and as a code, and a password that begins and ends with it."""
    raw = character.join(PARTS), f"{character}hunter{character}"
    return [*raw, quote(raw[0], safe="")]


def told(act: Callable[[], object], *kinds: type[Exception]) -> str:
    """The one sentence of what is raised."""
    with pytest.raises(kinds) as caught:
        act()
    error: BaseException | None = caught.value
    message = str(error)
    assert message.isprintable(), message
    assert len(message) < 400
    while error is not None:  # what Dagster stores in an event
        assert not any(part in str(error) for part in PARTS), str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return message


@pytest.fixture(autouse=True)
def _places(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    init = s3.S3Store.__init__.__kwdefaults__
    assert init is not None
    monkeypatch.setitem(init, "deadline_s", 0)
    caplog.set_level(logging.INFO)


def ask_database(monkeypatch: pytest.MonkeyPatch, password: str) -> str:
    monkeypatch.setenv("TRIANGULATION_DATABASE_URL", f"postgresql://me:{password}@127.0.0.1:1/db")
    return told(lambda: open_database(read_settings().database_url), ValueError, StorageError)


def ask_database_file(monkeypatch: pytest.MonkeyPatch, password: str) -> str:
    monkeypatch.setenv("TRIANGULATION_DATABASE_URL", f"sqlite://me:{password}@127.0.0.1:1/db")
    return told(lambda: open_database(read_settings().database_url), ValueError, StorageError)


def ask_webserver(monkeypatch: pytest.MonkeyPatch, password: str) -> str:
    url = f"http://me:{password}@127.0.0.1:1/dagster"
    monkeypatch.setenv("TRIANGULATION_WEBSERVER_URL", url)
    from_environment = told(lambda: Webserver().run("x"), WebserverError)
    assert told(lambda: Webserver(url).run("x"), WebserverError) == from_environment
    return from_environment


def ask_store(monkeypatch: pytest.MonkeyPatch, password: str) -> str:
    use_s3(monkeypatch, f"http://me:{password}@127.0.0.1:1")
    return told(lambda: open_store(S3Location("bucket", "")), StorageError)


def ask_store_in_the_url(monkeypatch: pytest.MonkeyPatch, password: str) -> str:
    monkeypatch.setenv("TRIANGULATION_OBJECT_STORE", f"s3://me:{password}@bucket/prefix")
    return told(read_settings, ValueError)


def ask_webserver_by_proxy(monkeypatch: pytest.MonkeyPatch, password: str) -> str:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{password}@127.0.0.1:1")
    message = told(lambda: Webserver("https://dagster.invalid").run("x"), WebserverError)
    assert "by the proxy of HTTPS_PROXY" in message
    return message


def ask_store_by_proxy(monkeypatch: pytest.MonkeyPatch, password: str) -> str:
    use_s3(monkeypatch, "https://s3.invalid:9000")
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{password}@127.0.0.1:1")
    message = told(lambda: open_store(S3Location("bucket", "")), StorageError)
    assert "by the proxy of HTTPS_PROXY" in message
    return message


SLOW = (ask_store, ask_store_by_proxy)
QUICK = (ask_database, ask_database_file, ask_webserver, ask_webserver_by_proxy, ask_store_in_the_url)
ASK = [*QUICK, *(pytest.param(ask, marks=pytest.mark.production) for ask in SLOW)]


@pytest.mark.parametrize("ask", ASK, ids=lambda ask: ask.__name__)
@pytest.mark.parametrize(
    "character",
    [*CHARACTERS, *(pytest.param(character, marks=pytest.mark.production) for character in MORE_CHARACTERS)],
    ids=ascii,
)
def test_no_part_of_a_password_is_told(
    ask: Callable[[pytest.MonkeyPatch, str], str], character: str, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    for password in passwords(character):
        message = ask(monkeypatch, password)
        # Of an address that could be split, the rest is told.
        if ask in (ask_database, ask_webserver, ask_store) and "must" not in message:
            assert "127.0.0.1:1" in message
    assert not any(part in caplog.text for part in PARTS)


@pytest.mark.parametrize("character", "@/#?%")
def test_how_to_write_a_password_is_told(character: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, coded = f"hunter{character}2secret", quote(f"hunter{character}2secret", safe="")
    code = quote(character, safe="")
    for ask in (ask_database, ask_webserver, ask_webserver_by_proxy):
        assert f"{code} for {character}" in ask(monkeypatch, raw)
    for ask in (ask_database, ask_webserver):
        assert "refused; is the server" in ask(monkeypatch, coded) or "cannot be reached" in ask(monkeypatch, coded)


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(user=st.text(max_size=5), password=st.text(), rest=st.sampled_from(["", "/", "/db?a=b", "#x"]))
def test_what_is_coded_is_split_as_it_was_joined(user: str, password: str, rest: str) -> None:
    address = parse_address(f"HTTP://{quote(user, safe='')}:{quote(password, safe='')}@host.example:80{rest}")
    assert (address.scheme, address.user, address.password, address.host, address.port, address.rest) == (
        *("http", user, password, "host.example", 80),
        rest,
    )
    assert str(address) == "http://host.example:80"
    assert repr(address) == "Address(scheme='http', host='host.example', port=80)"


@settings(max_examples=500)
@given(st.text(alphabet="abc@:/?#[]%2, \n.ü", max_size=20))
def test_any_text_is_split_or_refused(text: str) -> None:
    address = None
    with contextlib.suppress(ValueError):
        address = parse_address(f"http://me:{text}@host:1")
    assert (address is None) == bool(re.search(r"[@/#?]|%(?![0-9a-f]{2})", text))
    assert str(address) in ("None", "http://host:1")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://host", "postgresql+psycopg://host"),
        ("http://[::1]:80/x", "http://[::1]:80"),
        ("http://bücher.example/", "http://bücher.example"),
        ("postgresql:///db", "postgresql://"),
        ("postgresql://u@/db?host=/var/run", "postgresql://"),
        ("http://host:65535?x", "http://host:65535"),
        ("http://host:/x", "http://host"),
        ("s3+a.b-1://host_1", "s3+a.b-1://host_1"),
    ],
)
def test_hosts(text: str, shown: str) -> None:
    assert str(parse_address(text)) == shown


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("there:3000", "must be as in scheme://host:port"),
        ("postgresql://u:hunter@one:5432,two:5432/db", "must name one host, not several"),
        ("http://me:hunter", "has a host or a port that cannot be read"),
        ("://host", "must be as in scheme://host:port"),
        ("1s://host", "must be as in scheme://host:port"),
        ("ht_tp://host", "must be as in scheme://host:port"),
        ("http://host:65536", "has a host or a port that cannot be read"),
        ("http://host:123456", "has a host or a port that cannot be read"),
        ("http://host:99999", "has a host or a port that cannot be read"),
        ("http://ho st", "has a host or a port that cannot be read"),
        ("http://[::1", "has a host or a port that cannot be read"),
        ("http://me:hunter@host/x@y", "%40 for @"),
    ],
)
def test_refused(text: str, says: str) -> None:
    assert says in told(lambda: parse_address(text), ValueError)


@pytest.mark.parametrize(
    ("text", "user", "password", "host", "port", "rest"),
    [
        ("http://host", None, None, "host", None, ""),
        ("http://u@host/a?b#c", "u", None, "host", None, "/a?b#c"),
        ("http://u:@host:1", "u", "", "host", 1, ""),
        ("http://:p@host#a", "", "p", "host", None, "#a"),
        ("http://u:p:q%40r@[fe80::1]:1?a", "u", "p:q@r", "fe80::1", 1, "?a"),
        ("http://@host", "", None, "host", None, ""),
    ],
)
def test_parts(text: str, user: str | None, password: str | None, host: str, port: int | None, rest: str) -> None:
    address = parse_address(text)
    assert (address.user, address.password, address.host, address.port, address.rest) == (
        user,
        password,
        host,
        port,
        rest,
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter@one,two/db",
        "postgresql://me:hunter@one:5432,two:5433/db",
        "postgresql://me:hunter@/db?host=one&host=two",
        "postgresql://me:hunter@/db?host=one,two",
        "postgresql://me:hunter@host#x/db",
    ],
)
def test_a_database_has_one_host(url: str) -> None:
    assert "the database URL must name one host" in told(lambda: open_database(url), ValueError)


def test_which_proxy_a_server_is_reached_by(monkeypatch: pytest.MonkeyPatch) -> None:
    address = parse_address("https://host.example")
    assert by_proxy(address) == ""
    monkeypatch.setenv("http_proxy", "http://me:hunter@proxy:1")
    assert by_proxy(address) == ""
    monkeypatch.setenv("https_proxy", "me:hunter@proxy:1")
    assert by_proxy(address) == " (by the proxy of https_proxy)"
    monkeypatch.setenv("NO_PROXY", ".example")
    assert by_proxy(address) == ""


@pytest.mark.parametrize("name", ["all_proxy", "https_proxy", "HTTPS_PROXY"])
def test_each_variable_of_a_proxy_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    address = parse_address("https://host.example")
    monkeypatch.setenv(name, "http://proxy:1")
    assert by_proxy(address) == f" (by the proxy of {name})"
    monkeypatch.setenv("all_proxy", "http://other:1")
    assert by_proxy(address) == f" (by the proxy of {name})"  # the nearest one
    monkeypatch.setenv(name, "http://me:hunter/2secret@proxy:1")
    assert by_proxy(address).startswith(f" (by the proxy of {name}, whose address must have the special characters")
    assert "hunter" not in by_proxy(address)
    monkeypatch.setenv("no_proxy", "host.example")
    assert by_proxy(address) == ""
