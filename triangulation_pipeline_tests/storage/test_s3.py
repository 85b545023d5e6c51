"""The object store in a bucket: what the server holds, and what becomes of a server that fails or refuses."""

import contextlib
import itertools
import logging
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from triangulation_pipeline.defs.resources import s3_client
from triangulation_pipeline.storage import s3
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.objects import S3Place, open_store
from triangulation_pipeline.storage.s3 import PART_BYTES, S3Store
from triangulation_pipeline_tests.conftest import S3_ACCESS_KEY_ID, S3_SECRET, new_bucket_name, use_s3

pytestmark = pytest.mark.production

KEY = "checkpoints/job-1/state/3-abcdef12.pth"
SECRETS = (S3_ACCESS_KEY_ID, S3_SECRET, "s3cret")


def name_of(store: S3Store, key: str) -> dict[str, str]:
    """Bucket and name of an object as the server knows it."""
    bucket, _, name = store.location(key).removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": name}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def client_of(endpoint: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        use_s3(patch, endpoint)
        return s3_client()


def refusal(act: Callable[[], Any]) -> str:
    """The one sentence of a StorageError that holds no secret."""
    with pytest.raises(StorageError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    assert not any(secret in message for secret in SECRETS)
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return message


@contextmanager
def answers(*scripted: tuple[int, str]) -> Iterator[tuple[str, list[str]]]:
    """A server that answers with these statuses and error codes, the last of them for ever; and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, code = scripted[min(len(asked), len(scripted) - 1)]
            asked.append(f"{self.command} {self.path}")
            body = b""
            if code:
                body = (
                    f"<Error><Code>{code}</Code><Message>s3cret</Message>"
                    f"<AWSAccessKeyId>{S3_ACCESS_KEY_ID}</AWSAccessKeyId></Error>"
                ).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_store_is_opened_by_the_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, s3_endpoint)
    place = S3Place(new_bucket_name(), "some/prefix")
    stored = open_store(place, s3_client).put(KEY, b"data")
    assert stored.location == f"s3://{place.bucket}/some/prefix/{KEY}"
    # A second opening finds the bucket, and what is in it.
    assert open_store(place, s3_client).get(KEY, stored.sha256) == b"data"


def test_many_open_a_store_at_once(client: Any) -> None:
    name = new_bucket_name()
    with ThreadPoolExecutor(4) as pool:
        for opened in [pool.submit(S3Store(client, name).open) for _ in range(8)]:
            opened.result()
    assert S3Store(client, name).list_keys() == []


def test_a_bucket_is_made_where_its_client_is(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, s3_endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-south-1")
    client, name = s3_client(), new_bucket_name()
    S3Store(client, name).open()
    found = client.get_bucket_location(Bucket=name)["LocationConstraint"]
    assert found == "eu-south-1" or "TRIANGULATION_TEST_S3_ENDPOINT" in os.environ  # which may have no regions


def test_a_server_without_regions_is_asked_without(monkeypatch: pytest.MonkeyPatch) -> None:
    with answers((404, "NoSuchBucket"), (400, "InvalidLocationConstraint"), (200, "")) as (endpoint, asked):
        use_s3(monkeypatch, endpoint)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-south-1")
        S3Store(s3_client(), "my-bucket").open()
    assert asked[1:] == ["PUT /my-bucket"] * 2


def test_buckets_are_part_of_the_path() -> None:
    """A name of the bucket's own in the DNS is nothing that a server of one's own has."""
    with answers((404, "NoSuchBucket"), (200, "")) as (endpoint, asked):
        S3Store(client_of(endpoint), "my-bucket", "prefix").open()
    assert asked[0].startswith("GET /my-bucket?")
    assert asked[1] == "PUT /my-bucket"


def test_the_digest_lies_with_the_object(bucket: S3Store, client: Any) -> None:
    stored = bucket.put(KEY, b"data")
    found = client.head_object(**name_of(bucket, KEY))
    assert {name.lower(): value for name, value in found["Metadata"].items()} == {"sha256": stored.sha256}
    assert name_of(bucket, KEY)["Key"] == f"some/prefix/{KEY}"


def test_a_large_object_is_sent_in_parts(bucket: S3Store, client: Any) -> None:
    data = bytes(range(256)) * 4096 * 17
    stored = bucket.put(KEY, data)
    found = client.head_object(**name_of(bucket, KEY))
    assert found["ETag"].endswith('-2"')
    assert found["Metadata"] == {"sha256": stored.sha256}
    assert bucket.get(KEY, stored.sha256) == data
    bucket.put(KEY, b"small")
    assert "-" not in client.head_object(**name_of(bucket, KEY))["ETag"]


def test_an_upload_that_fails_leaves_the_old_object_and_no_parts(bucket: S3Store, s3_endpoint: str) -> None:
    old = bucket.put(KEY, b"old")
    client = client_of(s3_endpoint)

    def denied(params: dict[str, Any], **_: Any) -> None:
        if "partNumber=2" in params["url"] or params["query_string"].get("partNumber") == 2:
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "s3cret"}}, "UploadPart")

    client.meta.events.register("before-call.s3.UploadPart", denied)
    place = name_of(bucket, KEY)
    failing = S3Store(client, place["Bucket"], "some/prefix", deadline_s=1)
    assert "these credentials may not do that" in refusal(lambda: failing.put(KEY, bytes(PART_BYTES + 1)))
    assert client.list_multipart_uploads(Bucket=place["Bucket"]).get("Uploads", []) == []
    assert bucket.get(KEY, old.sha256) == b"old"
    assert bucket.list_keys() == [KEY]


@pytest.mark.parametrize("changed", [{"ContentLength": 1}, {"Metadata": {}}])
def test_what_the_server_does_not_confirm_is_not_stored(
    bucket: S3Store, s3_endpoint: str, changed: dict[str, Any]
) -> None:
    client = client_of(s3_endpoint)
    client.meta.events.register("after-call.s3.HeadObject", lambda parsed, **_: parsed.update(changed))
    store = S3Store(client, name_of(bucket, KEY)["Bucket"])
    assert "sent were 4 bytes of digest" in refusal(lambda: store.put(KEY, b"data"))


def test_metadata_may_come_back_in_capitals(bucket: S3Store, s3_endpoint: str) -> None:
    client = client_of(s3_endpoint)

    def capitals(parsed: dict[str, Any], **_: Any) -> None:
        parsed["Metadata"] = {name.upper(): value for name, value in parsed["Metadata"].items()}

    client.meta.events.register("after-call.s3.HeadObject", capitals)
    S3Store(client, name_of(bucket, KEY)["Bucket"]).put(KEY, b"data")


def test_damage_is_found_out(bucket: S3Store, client: Any) -> None:
    stored = bucket.put(KEY, b"data")
    client.put_object(**name_of(bucket, KEY), Body=b"dada", Metadata={"sha256": stored.sha256})
    assert f"'{KEY}' is damaged: its digest is " in refusal(lambda: bucket.get(KEY, stored.sha256))


def test_more_keys_than_a_page_holds_are_listed(bucket: S3Store, s3_endpoint: str) -> None:
    keys = [f"many/{i}" for i in range(5)]
    for key in keys:
        bucket.put(key, b"")
    client, pages = client_of(s3_endpoint), []
    client.meta.events.register("provide-client-params.s3.ListObjectsV2", lambda params, **_: params | {"MaxKeys": 2})
    client.meta.events.register("after-call.s3.ListObjectsV2", lambda parsed, **_: pages.append(parsed["KeyCount"]))
    place = name_of(bucket, KEY)["Bucket"]
    assert S3Store(client, place, "some/prefix").list_keys("many/") == keys
    assert pages == [2, 2, 1]


def test_stores_of_other_prefixes_and_strangers_objects_stay_apart(bucket: S3Store, client: Any) -> None:
    place = name_of(bucket, KEY)["Bucket"]
    neighbour, whole = S3Store(client, place, "some/prefix2"), S3Store(client, place)
    mine, theirs = bucket.put("a", b"mine"), neighbour.put("a", b"theirs")
    client.put_object(Bucket=place, Key="some/prefix/not a key", Body=b"")
    assert bucket.list_keys() == neighbour.list_keys() == ["a"]
    assert whole.list_keys() == ["some/prefix/a", "some/prefix2/a"]
    with pytest.raises(ValueError, match="no place in the object store s3://"):
        bucket.key(theirs.location)
    bucket.delete("a")
    assert neighbour.get("a", theirs.sha256) == b"theirs"
    assert whole.key(mine.location) == "some/prefix/a"


def test_a_server_that_comes_back_in_time_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    client, name = client_of(f"http://127.0.0.1:{port}"), new_bucket_name()
    store = S3Store(client, name, deadline_s=20)

    def serve() -> ThreadedMotoServer:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        return server

    server = serve()
    store.open()
    first = store.put("a", b"first")
    server.stop()
    back: list[ThreadedMotoServer] = []
    timer = threading.Timer(1.5, lambda: back.append(serve()))
    timer.start()
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        second = store.put("b", bytes(PART_BYTES + 1))
    assert time.monotonic() - began > 1
    timer.join()
    assert store.get("a", first.sha256) == b"first"
    assert store.get("b", second.sha256) == bytes(PART_BYTES + 1)
    back[0].stop()
    (warning,) = (record.getMessage() for record in caplog.records if record.name.startswith("triangulation"))
    assert f"http://127.0.0.1:{port} refuses the connection; trying for 20 seconds" in warning


@pytest.mark.parametrize("act", ["open", "put", "get", "delete", "list_keys"])
def test_a_server_gone_for_good_is_given_up(act: str) -> None:
    port = free_port()
    store = S3Store(client_of(f"http://127.0.0.1:{port}"), "bucket", deadline_s=0.5)
    acts = {
        "open": store.open,
        "put": lambda: store.put(KEY, b"data"),
        "get": lambda: store.get(KEY, "0"),
        "delete": lambda: store.delete(KEY),
        "list_keys": store.list_keys,
    }
    began = time.monotonic()
    message = refusal(acts[act])
    assert message.endswith(f": http://127.0.0.1:{port} refuses the connection, for 0.5 seconds")
    assert time.monotonic() - began < 5


def test_an_unknown_host_is_named() -> None:
    store = S3Store(client_of("http://me:s3cret@no-such-host.invalid:9000"), "bucket", deadline_s=0)
    assert "the host of http://no-such-host.invalid:9000 is unknown" in refusal(store.open)


def test_an_address_that_is_none_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, "me:s3cret@host")
    message = refusal(lambda: open_store(S3Place("bucket", ""), s3_client))
    assert message == "AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL) must be as in http://host:9000"


def test_missing_credentials_are_asked_for(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, s3_endpoint)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    asked_for = "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    assert asked_for in refusal(lambda: open_store(S3Place("bucket", ""), s3_client))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert asked_for in refusal(lambda: open_store(S3Place("bucket", ""), s3_client))
    monkeypatch.setenv("AWS_PROFILE", "s3cret")
    assert "AWS_PROFILE names no profile" in refusal(lambda: open_store(S3Place("bucket", ""), s3_client))


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "SignatureDoesNotMatch", "the secret is wrong (AWS_SECRET_ACCESS_KEY)"),
        (403, "InvalidAccessKeyId", "the access key is unknown there (AWS_ACCESS_KEY_ID)"),
        (403, "AccessDenied", "these credentials may not do that"),
        (400, "ExpiredToken", "the session token has expired"),
        (400, "InvalidLocationConstraint", "the region is unknown there (AWS_DEFAULT_REGION)"),
        (501, "NotImplemented", "answers NotImplemented (HTTP status 501)"),
        (400, "no code, but s3cret", "answers an error (HTTP status 400)"),
    ],
)
def test_a_refusal_is_final_and_explained(status: int, code: str, says: str) -> None:
    with answers((status, code)) as (endpoint, asked):
        store = S3Store(client_of(endpoint), "bucket", deadline_s=20)
        message = refusal(store.open)
        assert message.startswith(f"object store s3://bucket cannot be opened: {endpoint} ")
        assert says in message
        assert len(asked) <= 2
        assert says in refusal(lambda: store.get(KEY, "0"))


@pytest.mark.parametrize(
    "code", ["AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "InvalidRegion"]
)
@pytest.mark.parametrize("tells", ["nothing", "in the body", "in the head"])
def test_a_wrong_region_names_its_variable(code: str, tells: str) -> None:
    status = 301 if code == "PermanentRedirect" else 400
    region = "<Region>eu-south-1</Region>" if tells == "in the body" else ""
    # A redirection of AWS always has the header.
    in_head = tells == "in the head" or status == 301
    head = "x-amz-bucket-region: eu-south-1\r\n" if in_head else ""
    body = f"<Error><Code>{code}</Code><Message>s3cret</Message>{region}</Error>"
    answer = f"HTTP/1.1 {status} no\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    with says_always(answer) as endpoint:
        store = S3Store(client_of(endpoint), "bucket", deadline_s=0)
        for act in (store.open, store.list_keys, lambda: store.get(KEY, "0")):
            message = refusal(act)
            assert f"{endpoint} refuses, the region is wrong (AWS_DEFAULT_REGION)" in message
            assert message.endswith("'eu-south-1'") == (tells == "in the body")


def test_a_region_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "s3cret/../")
    message = refusal(lambda: open_store(S3Place("bucket", ""), s3_client))
    assert message == "AWS_DEFAULT_REGION must be the name of a region, as in eu-south-1"


@contextmanager
def says_always(answer: bytes, *, over: Iterator[bytes] | None = None) -> Iterator[str]:
    """The address of a server that answers every request with these bytes, then (where it is there) with ``over``."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while b"\r\n\r\n" not in self.request.recv(2**16):
                    pass
                self.request.sendall(answer)
                for more in over or ():
                    self.request.sendall(more)
                self.request.shutdown(socket.SHUT_WR)
                self.request.settimeout(1)
                while self.request.recv(2**16):
                    pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def acts(store: S3Store) -> list[Callable[[], Any]]:
    return [
        store.open,
        lambda: store.put(KEY, b"data"),
        lambda: store.get(KEY, "0" * 64),
        lambda: store.delete(KEY),
        store.list_keys,
    ]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("https://me:s3cret@other.example:9000/x?y=s3cret", "redirects to https://other.example:9000 (HTTP status "),
        ("/minio/s3cret", "answers with a redirection (HTTP status "),
        ("http://me:s3/cret@other", "cannot be asked, or answers not as S3 does (LocationParseError)"),
        ("http://[s3cret", "cannot be asked, or answers not as S3 does (LocationParseError)"),
        ("", "answers with a redirection (HTTP status "),
    ],
)
def test_a_server_that_redirects_is_one_sentence(status: int, location: str, says: str) -> None:
    head = f"Location: {location}\r\n" if location else ""
    with says_always(f"HTTP/1.1 {status} Moved\r\n{head}Content-Length: 0\r\n\r\n".encode()) as endpoint:
        for act in acts(S3Store(client_of(endpoint), "bucket", deadline_s=20)):
            assert f"{endpoint} {says}{status if says.endswith(' ') else ''}" in refusal(act)


HTML = b"<!DOCTYPE html><html><body>Welcome<br>to s3cret &nbsp;</body></html>"
FOREIGN = {
    "see elsewhere": b"HTTP/1.1 303 no\r\nLocation: https://other.example\r\nContent-Length: 0\r\n\r\n",
    "a page": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + HTML,
    "a page, not found": b"HTTP/1.1 404 no\r\nContent-Type: text/html\r\n\r\n" + HTML,
    "a page, forbidden": b"HTTP/1.1 403 no\r\n\r\n" + HTML,
    "plain where TLS is wanted": b"HTTP/1.1 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
    "an overloaded proxy": b"HTTP/1.1 503 no\r\n\r\n" + HTML,
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2p1\r\n" * 50,
    "noise": bytes(range(256)) * 100,
    "no chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n<ListBucketResult>",
    "odd lengths": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
    "odd dates": b"HTTP/1.1 200 OK\r\nLast-Modified: s3cret\r\nContent-Length: 0\r\n\r\n",
    "deep": b"HTTP/1.1 200 OK\r\n\r\n" + b"<a>" * 20_000,
    "no letters": b"HTTP/1.1 400 \xff\xfe\r\nx: \xff\r\n\r\n<Error><Code>\xff</Code></Error>",
    "entities": b'HTTP/1.1 400 no\r\n\r\n<!DOCTYPE a [<!ENTITY b "Code">]><Error><Code>&b;</Code></Error>',
    "many heads": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000 + b"\r\n",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_server_is_one_sentence(name: str) -> None:
    """Whatever it answers; the two that find nothing at all to stumble over are an empty store, which takes nothing."""
    with says_always(FOREIGN[name]) as endpoint:
        store, refused = S3Store(client_of(endpoint), "bucket", deadline_s=0), []
        for act in acts(store):
            try:
                act()
            except StorageError:
                refused.append(act)
        assert all(len(refusal(act)) < 400 for act in refused)
        assert "cannot be stored" in refusal(lambda: store.put(KEY, b"data"))


@pytest.mark.parametrize("head", [b"", b"Content-Length: 99999999999999\r\n"])
def test_an_answer_without_end_is_not_read(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MOST_OBJECT_BYTES", 2**24)
    with says_always(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", over=itertools.repeat(bytes(2**20))) as endpoint:
        store = S3Store(client_of(endpoint), "bucket", deadline_s=0)
        for act in (store.open, store.list_keys):
            assert refusal(act).endswith(f"{endpoint} answers without end")
        assert "is larger than any of ours" in refusal(lambda: store.get(KEY, "0" * 64))


def test_no_TLS_where_it_is_wanted(s3_endpoint: str) -> None:
    endpoint = s3_endpoint.replace("http://", "https://")
    store = S3Store(client_of(endpoint), "bucket", deadline_s=0)
    assert f"no secure connection to {endpoint} can be made" in refusal(store.open)


def test_a_bucket_that_may_not_be_made_is_one_sentence() -> None:
    with answers((404, "NoSuchBucket"), (403, "AccessDenied")) as (endpoint, _):
        message = refusal(S3Store(client_of(endpoint), "bucket", "prefix").open)
    assert message == (
        "object store s3://bucket/prefix has no bucket yet, and it cannot be made: "
        f"{endpoint} refuses, these credentials may not do that"
    )


def test_a_bucket_lost_in_mid_run_is_named(bucket: S3Store, client: Any, s3_endpoint: str) -> None:
    name = name_of(bucket, KEY)["Bucket"]
    stored = bucket.put(KEY, b"data")
    client.delete_object(**name_of(bucket, KEY))
    client.delete_bucket(Bucket=name)
    for act in (lambda: bucket.put(KEY, b"data"), lambda: bucket.get(KEY, stored.sha256), bucket.list_keys):
        assert f"there is no bucket '{name}' at {s3_endpoint}" in refusal(act)


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (429, "TooManyRequests"), (500, "InternalError")])
def test_an_overloaded_server_is_asked_again_and_given_up_at_the_deadline(status: int, code: str) -> None:
    with answers(*[(status, code)] * 5, (204, "")) as (endpoint, asked):
        S3Store(client_of(endpoint), "bucket", deadline_s=20).delete(KEY)
        assert len(asked) == 6
    with answers((status, code)) as (endpoint, _):
        began = time.monotonic()
        message = refusal(lambda: S3Store(client_of(endpoint), "bucket", deadline_s=1).delete(KEY))
        assert time.monotonic() - began < 5
    assert f"answers {code} (HTTP status {status}), for 1 seconds" in message
