"""The object store in a bucket: what the server holds, and what becomes of a server that fails or refuses."""

import contextlib
import hashlib
import io
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
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConfigParseError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    InvalidRegionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from moto.server import ThreadedMotoServer
from urllib3.exceptions import LocationParseError, NameResolutionError

from triangulation_pipeline.storage import s3
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.objects import S3Location
from triangulation_pipeline.storage.s3 import PART_BYTES, S3Store, make_client
from triangulation_pipeline.storage.stores import open_store
from triangulation_pipeline_tests.conftest import S3_ACCESS_KEY_ID, S3_SECRET, new_bucket_name, use_s3
from triangulation_pipeline_tests.storage.conftest import Clock, keys_of

KEY = "checkpoints/job-1/state/3-abcdef12.pth"
SECRETS = (S3_ACCESS_KEY_ID, S3_SECRET, "s3cret")


def in_production(*values: Any) -> list[Any]:
    """Parameters that only the long tests have."""
    return [pytest.param(value, marks=pytest.mark.production) for value in values]


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
        return make_client()


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


SERVER = "http://host:9000"


class Stub:
    """A client whose every request ends in ``error`` the first ``times`` it is asked; what it was asked for."""

    def __init__(self, error: Exception, times: int = 1000, endpoint: str = SERVER, region: str = "us-east-1") -> None:
        self.meta = SimpleNamespace(
            endpoint_url=endpoint, region_name=region, events=SimpleNamespace(register=lambda *_, **__: None)
        )
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._error, self._times = error, times

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        def request(**values: Any) -> dict[str, Any]:
            self.asked.append((name, values))
            if len(self.asked) <= self._times:
                raise self._error
            return {}

        return request


def answered(status: int, code: str, **told: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "s3cret", **told}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Act"
    )


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (answered(503, "SlowDown"), "answers SlowDown (HTTP status 503)"),
        (answered(429, "TooManyRequests"), "answers TooManyRequests (HTTP status 429)"),
        (answered(500, "InternalError"), "answers InternalError (HTTP status 500)"),
        (answered(502, ""), "answers an error (HTTP status 502)"),
        (answered(400, "SlowDown"), "answers SlowDown (HTTP status 400)"),
        (answered(400, "RequestTimeout"), "answers RequestTimeout (HTTP status 400)"),
        (answered(400, "Throttling"), "answers Throttling (HTTP status 400)"),
        (answered(400, "ThrottlingException"), "answers ThrottlingException (HTTP status 400)"),
        (answered(409, "OperationAborted"), "answers OperationAborted (HTTP status 409)"),
        (answered(404, "NoSuchUpload"), "answers NoSuchUpload (HTTP status 404)"),
        (EndpointConnectionError(endpoint_url="s3cret", error=OSError()), "refuses the connection"),
        (SSLError(endpoint_url="s3cret", error="s3cret"), f"no secure connection to {SERVER} can be made"),
        (ConnectionClosedError(endpoint_url="s3cret", error="s3cret"), "breaks the connection off"),
        (ResponseStreamingError(error="s3cret"), "breaks the connection off"),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), "breaks the connection off"),
        (ReadTimeoutError(endpoint_url="s3cret", error="s3cret"), "does not answer"),
        (ConnectTimeoutError(endpoint_url="s3cret", error="s3cret"), "does not answer"),
        (ProxyConnectionError(proxy_url="s3cret", error="s3cret"), "does not answer"),
    ],
)
def test_what_may_pass_is_tried_for_a_minute(clock: Clock, error: Exception, says: str) -> None:
    client = Stub(error, times=8)
    S3Store(client, "bucket").delete(KEY)
    assert len(client.asked) == 9
    began, client = clock.now_s, Stub(error)
    message = refusal(lambda: S3Store(client, "bucket").delete(KEY))
    assert message.startswith(f"object '{KEY}' cannot be deleted under s3://bucket: ")
    assert message.endswith(f"{says}, for 60 seconds")
    assert SERVER in message
    assert 55 <= clock.now_s - began <= 60
    assert len(client.asked) > 12


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (answered(403, "SignatureDoesNotMatch"), "refuses, the secret is wrong (AWS_SECRET_ACCESS_KEY)"),
        (answered(403, "InvalidAccessKeyId"), "refuses, the access key is unknown there (AWS_ACCESS_KEY_ID)"),
        (answered(400, "ExpiredToken"), "refuses, the session token has expired (AWS_SESSION_TOKEN)"),
        (answered(400, "InvalidToken"), "refuses, the session token is wrong (AWS_SESSION_TOKEN)"),
        (answered(400, "InvalidLocationConstraint"), "refuses, the region is unknown there (AWS_DEFAULT_REGION)"),
        (answered(403, "RequestTimeTooSkewed"), "refuses, this machine's clock is wrong"),
        (answered(403, "AccessDenied"), "refuses, these credentials may not do that"),
        (answered(403, "AllAccessDisabled"), "refuses, these credentials may not do that"),
        (answered(403, "Forbidden"), "refuses, these credentials may not do that"),
        (answered(403, "403"), "refuses, these credentials may not do that"),
        *(
            (answered(400, code), "refuses, the region is wrong (AWS_DEFAULT_REGION)")
            for code in ("301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "InvalidRegion")
        ),
        (
            answered(301, "PermanentRedirect", Region="eu-south-1"),
            "refuses, the region is wrong (AWS_DEFAULT_REGION); it is 'eu-south-1'",
        ),
        (
            answered(301, "PermanentRedirect", Region="s3cret!"),
            "refuses, the region is wrong (AWS_DEFAULT_REGION)",
        ),
        (answered(404, "NoSuchBucket"), f"there is no bucket 'bucket' at {SERVER}"),
        (answered(501, "NotImplemented"), "answers NotImplemented (HTTP status 501)"),
        (answered(400, "no code, but s3cret"), "answers an error (HTTP status 400)"),
        (answered(412, "x" * 61), "answers an error (HTTP status 412)"),
        (ClientError({}, "Act"), "answers an error (HTTP status 0)"),
        (NoCredentialsError(), "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (
            CredentialRetrievalError(provider="s3cret", error_msg="s3cret"),
            "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        (
            HTTPClientError(error=LocationParseError("s3cret")),
            "cannot be asked, or answers not as S3 does (LocationParseError)",
        ),
        (ParamValidationError(report="s3cret"), "the request cannot be made (ParamValidationError)"),
        (KeyError("s3cret"), f"{SERVER} answers, and not as S3 does (KeyError)"),
    ],
)
def test_what_does_not_pass_is_final_and_told_in_words_of_ours(clock: Clock, error: Exception, says: str) -> None:
    client = Stub(error)
    store = S3Store(client, "bucket")
    failed = {
        store.open: "object store s3://bucket cannot be opened",
        lambda: store.get(KEY, "0"): f"object '{KEY}' cannot be read under s3://bucket",
        lambda: store.delete(KEY): f"object '{KEY}' cannot be deleted under s3://bucket",
    }
    for act, beginning in failed.items():
        if act == store.open and says.startswith("there is no bucket"):
            continue  # which is made
        message = refusal(act)
        assert message.startswith(f"{beginning}: ")
        assert message.endswith(says)
        assert len(message) < len(beginning) + 130
    assert len(client.asked) <= len(failed)
    assert clock.pauses == []


def test_a_host_that_has_no_address_is_told(clock: Clock) -> None:
    unknown = EndpointConnectionError(
        endpoint_url="s3cret", error=NameResolutionError("s3cret", None, socket.gaierror("s3cret"))
    )
    store = S3Store(Stub(unknown), "bucket", deadline_s=0)
    assert refusal(store.open).endswith(f": the host of {SERVER} is unknown, for 0 seconds")


@pytest.mark.parametrize(
    "error", [EndpointConnectionError(endpoint_url="a", error="b"), ResponseStreamingError(error="")]
)
def test_a_proxy_in_between_is_named(clock: Clock, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setenv("http_proxy", "http://me:s3cret@proxy:3128")
    message = refusal(S3Store(Stub(error), "bucket", deadline_s=0).open)
    assert message.endswith(" (by the proxy of http_proxy), for 0 seconds")


def test_an_object_that_is_gone_already_is_deleted() -> None:
    client = Stub(answered(404, "NoSuchKey"))
    S3Store(client, "bucket", "a/prefix").delete(KEY)
    assert client.asked == [("delete_object", {"Bucket": "bucket", "Key": f"a/prefix/{KEY}"})]


@pytest.mark.parametrize(
    ("region", "place"),
    [
        ("us-east-1", {}),
        ("aws-global", {}),
        (None, {}),
        ("eu-south-1", {"CreateBucketConfiguration": {"LocationConstraint": "eu-south-1"}}),
    ],
)
def test_a_missing_bucket_is_made_where_its_client_is(region: str, place: dict[str, Any]) -> None:
    client = Stub(answered(404, "NoSuchBucket"), times=1, region=region)
    S3Store(client, "bucket", "a/prefix").open()
    look = ("list_objects_v2", {"Bucket": "bucket", "Prefix": "a/prefix/", "MaxKeys": 1})
    assert client.asked == [look, ("create_bucket", {"Bucket": "bucket", **place})]


@pytest.mark.parametrize("code", ["BucketAlreadyOwnedByYou", "BucketAlreadyExists"])
def test_a_bucket_that_another_process_made_meanwhile_is_there(code: str) -> None:
    class Late(Stub):
        def list_objects_v2(self, **_: Any) -> dict[str, Any]:
            raise answered(404, "NoSuchBucket")

    client = Late(answered(409, code))
    S3Store(client, "bucket").open()
    assert [name for name, _ in client.asked] == ["create_bucket"]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (InvalidRegionError(region_name="s3cret"), "AWS_DEFAULT_REGION must be the name of a region, as in eu-south-1"),
        (ValueError("s3cret"), "AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL) must be as in http://host:9000"),
        (
            PartialCredentialsError(provider="s3cret", cred_var="s3cret"),
            "object store s3://bucket/a cannot be opened: "
            "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        (ProfileNotFound(profile="s3cret"), "AWS_PROFILE names no profile of this machine's AWS settings"),
        (ConfigParseError(path="s3cret"), "the AWS variables and files cannot be used (ConfigParseError)"),
    ],
)
def test_variables_that_make_no_client_are_named(error: Exception, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Any:
        raise error

    monkeypatch.setattr(s3, "make_client", fails)
    assert refusal(lambda: open_store(S3Location("bucket", "a"))) == says


def test_an_address_that_hides_its_password_badly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Stub(ValueError(), endpoint="http://me:s3/cret@host:9000")
    monkeypatch.setattr(s3, "make_client", lambda: client)
    message = refusal(lambda: open_store(S3Location("bucket", "a")))
    assert message == "AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL) must be as in http://host:9000"


def holding(body: Any) -> Stub:
    """A client whose server has this body for whatever it is asked."""

    class Holding(Stub):
        def get_object(self, **_: Any) -> dict[str, Any]:
            return {"Body": body}

    return Holding(ValueError())


def test_an_object_larger_than_any_of_ours_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MOST_OBJECT_BYTES", 1000)
    data = bytes(1000)
    store = S3Store(holding(io.BytesIO(data)), "bucket")
    assert store.get(KEY, hashlib.sha256(data).hexdigest()) == data
    store = S3Store(holding(io.BytesIO(bytes(1001))), "bucket")
    message = refusal(lambda: store.get(KEY, "0" * 64))
    assert message == f"object '{KEY}' is larger than any of ours (1,000 bytes)"


def test_an_object_that_is_not_that_of_its_checksum_is_damaged(clock: Clock) -> None:
    def read(_: int) -> bytes:
        raise FlexibleChecksumError(error_msg="s3cret")

    store = S3Store(holding(SimpleNamespace(read=read)), "bucket")
    message = refusal(lambda: store.get(KEY, "0" * 64))
    assert message == f"object '{KEY}' is damaged: its bytes are not those of its checksum"
    assert clock.pauses == []


def test_an_object_that_breaks_off_is_read_again(clock: Clock) -> None:
    reads: list[int] = []

    def read(_: int) -> bytes:
        reads.append(1)
        if len(reads) == 2:
            raise ResponseStreamingError(error="s3cret")
        return b"da" if len(reads) in {1, 3} else b"ta" if len(reads) == 4 else b""

    store = S3Store(holding(SimpleNamespace(read=read)), "bucket")
    assert store.get(KEY, hashlib.sha256(b"data").hexdigest()) == b"data"


def test_locations_begin_with_the_bucket_and_the_prefix() -> None:
    whole, part = S3Store(Stub(ValueError()), "bucket"), S3Store(Stub(ValueError()), "bucket", "a/prefix")
    assert (whole.root, part.root) == ("s3://bucket", "s3://bucket/a/prefix")
    assert (whole.location("b/c"), part.location("b/c")) == ("s3://bucket/b/c", "s3://bucket/a/prefix/b/c")
    assert (whole.key("s3://bucket/b/c"), part.key("s3://bucket/a/prefix/b/c")) == ("b/c", "b/c")
    for elsewhere in ("s3://bucket2/a", "s3://bucket", "/a/prefix/b", "s3://bucket/a/prefix2/b"):
        with pytest.raises(ValueError, match=r"is no place in the object store s3://bucket/a/prefix$"):
            part.key(elsewhere)
    for odd in ("s3://bucket/a/prefix/../b", "s3://bucket/a/prefix/"):
        with pytest.raises(ValueError, match="an object's key must be"):
            part.key(odd)
    with pytest.raises(ValueError, match="an object's key must be"):
        S3Store(Stub(ValueError()), "bucket", "../prefix")


def test_a_store_is_opened_by_the_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, s3_endpoint)
    place = S3Location(new_bucket_name(), "some/prefix")
    stored = open_store(place).put(KEY, b"data")
    assert stored.location == f"s3://{place.bucket}/some/prefix/{KEY}"
    # A second opening finds the bucket, and what is in it.
    assert open_store(place).get(KEY, stored.sha256) == b"data"


def test_the_variables_say_where_and_as_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, "http://one:9000")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://two:9000")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-south-1")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the-token")
    client = make_client()
    assert (client.meta.endpoint_url, client.meta.region_name) == ("http://one:9000", "eu-south-1")
    url = client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": KEY})
    assert url.startswith(f"http://one:9000/bucket/{KEY}?")
    assert S3_ACCESS_KEY_ID in url
    assert "the-token" in url
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    assert make_client().meta.endpoint_url == "http://two:9000"


@pytest.mark.production
def test_many_open_a_store_at_once(client: Any) -> None:
    name = new_bucket_name()
    with ThreadPoolExecutor(4) as pool:
        for opened in [pool.submit(S3Store(client, name).open) for _ in range(8)]:
            opened.result()
    assert keys_of(S3Store(client, name)) == []


def test_a_bucket_is_made_where_its_client_is(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, s3_endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-south-1")
    client, name = make_client(), new_bucket_name()
    S3Store(client, name).open()
    found = client.get_bucket_location(Bucket=name)["LocationConstraint"]
    assert found == "eu-south-1" or "TRIANGULATION_TEST_S3_ENDPOINT" in os.environ  # which may have no regions


def test_a_server_without_regions_is_asked_without(monkeypatch: pytest.MonkeyPatch) -> None:
    with answers((404, "NoSuchBucket"), (400, "InvalidLocationConstraint"), (200, "")) as (endpoint, asked):
        use_s3(monkeypatch, endpoint)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-south-1")
        S3Store(make_client(), "my-bucket").open()
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


@pytest.mark.production
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
    assert keys_of(bucket) == [KEY]


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


def test_stores_of_other_prefixes_and_strangers_objects_stay_apart(bucket: S3Store, client: Any) -> None:
    place = name_of(bucket, KEY)["Bucket"]
    neighbour, whole = S3Store(client, place, "some/prefix2"), S3Store(client, place)
    mine, theirs = bucket.put("a", b"mine"), neighbour.put("a", b"theirs")
    client.put_object(Bucket=place, Key="some/prefix/not a key", Body=b"")
    assert keys_of(bucket) == keys_of(neighbour) == ["a"]
    assert keys_of(whole) == ["some/prefix/a", "some/prefix2/a"]
    with pytest.raises(ValueError, match="no place in the object store s3://"):
        bucket.key(theirs.location)
    bucket.delete("a")
    assert neighbour.get("a", theirs.sha256) == b"theirs"
    assert whole.key(mine.location) == "some/prefix/a"


@pytest.mark.production
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


@pytest.mark.parametrize("act", ["open", "put", "get", "delete"])
@pytest.mark.production
def test_a_server_gone_for_good_is_given_up(act: str) -> None:
    port = free_port()
    store = S3Store(client_of(f"http://127.0.0.1:{port}"), "bucket", deadline_s=0.5)
    acts = {
        "open": store.open,
        "put": lambda: store.put(KEY, b"data"),
        "get": lambda: store.get(KEY, "0"),
        "delete": lambda: store.delete(KEY),
    }
    began = time.monotonic()
    message = refusal(acts[act])
    assert message.endswith(f": http://127.0.0.1:{port} refuses the connection, for 0.5 seconds")
    assert time.monotonic() - began < 5


@pytest.mark.production
def test_an_unknown_host_is_named() -> None:
    store = S3Store(client_of("http://me:s3cret@no-such-host.invalid:9000"), "bucket", deadline_s=0)
    assert "the host of http://no-such-host.invalid:9000 is unknown" in refusal(store.open)


def test_an_address_that_is_none_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, "me:s3cret@host")
    message = refusal(lambda: open_store(S3Location("bucket", "")))
    assert message == "AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL) must be as in http://host:9000"


def test_missing_credentials_are_asked_for(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, s3_endpoint)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    asked_for = "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    assert asked_for in refusal(lambda: open_store(S3Location("bucket", "")))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert asked_for in refusal(lambda: open_store(S3Location("bucket", "")))
    monkeypatch.setenv("AWS_PROFILE", "s3cret")
    assert "AWS_PROFILE names no profile" in refusal(lambda: open_store(S3Location("bucket", "")))


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
@pytest.mark.production
def test_a_refusal_is_final_and_explained(status: int, code: str, says: str) -> None:
    with answers((status, code)) as (endpoint, asked):
        store = S3Store(client_of(endpoint), "bucket", deadline_s=20)
        message = refusal(store.open)
        assert message.startswith(f"object store s3://bucket cannot be opened: {endpoint} ")
        assert says in message
        assert len(asked) <= 2
        assert says in refusal(lambda: store.get(KEY, "0"))


@pytest.mark.parametrize(
    "code",
    [
        "AuthorizationHeaderMalformed",
        "PermanentRedirect",
        *in_production("IllegalLocationConstraintException", "InvalidRegion"),
    ],
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
        for act in (store.open, lambda: store.get(KEY, "0")):
            message = refusal(act)
            assert f"{endpoint} refuses, the region is wrong (AWS_DEFAULT_REGION)" in message
            assert message.endswith("'eu-south-1'") == (tells == "in the body")


def test_a_region_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "s3cret/../")
    message = refusal(lambda: open_store(S3Location("bucket", "")))
    assert message == "AWS_DEFAULT_REGION must be the name of a region, as in eu-south-1"


@contextmanager
def says_always(answer: bytes, *, over: Iterator[bytes] | None = None) -> Iterator[str]:
    """The address of a server that answers every request with these bytes, then (where it is there) with ``over``."""
    if answer.startswith(b"HTTP/"):  # or the next request may be sent on a connection that is about to be closed
        answer = answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)

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
    ]


@pytest.mark.parametrize("status", [301, *in_production(302, 307, 308)])
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


def test_a_redirection_to_nowhere_is_none_of_S3() -> None:
    for status in (301, 302, 303, 307, 308):
        with says_always(f"HTTP/1.1 {status} Moved\r\nContent-Length: 0\r\n\r\n".encode()) as endpoint:
            message = refusal(S3Store(client_of(endpoint), "bucket", deadline_s=0).open)
        assert message.endswith(f": {endpoint} answers with a redirection (HTTP status {status}), and not as S3 does")


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


AT_ONCE = ("a page", "half a body", "see elsewhere")


@pytest.mark.parametrize("name", [*AT_ONCE, *in_production(*(name for name in FOREIGN if name not in AT_ONCE))])
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
@pytest.mark.production
def test_an_answer_without_end_is_not_read(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MOST_OBJECT_BYTES", 2**24)
    with says_always(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", over=itertools.repeat(bytes(2**20))) as endpoint:
        store = S3Store(client_of(endpoint), "bucket", deadline_s=0)
        assert refusal(store.open).endswith(f"{endpoint} answers without end")
        assert "is larger than any of ours" in refusal(lambda: store.get(KEY, "0" * 64))


@pytest.mark.production
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
    for act in (lambda: bucket.put(KEY, b"data"), lambda: bucket.get(KEY, stored.sha256)):
        assert f"there is no bucket '{name}' at {s3_endpoint}" in refusal(act)


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (429, "TooManyRequests"), (500, "InternalError")])
@pytest.mark.production
def test_an_overloaded_server_is_asked_again_and_given_up_at_the_deadline(status: int, code: str) -> None:
    with answers(*[(status, code)] * 5, (204, "")) as (endpoint, asked):
        S3Store(client_of(endpoint), "bucket", deadline_s=20).delete(KEY)
        assert len(asked) == 6
    with answers((status, code)) as (endpoint, _):
        began = time.monotonic()
        message = refusal(lambda: S3Store(client_of(endpoint), "bucket", deadline_s=1).delete(KEY))
        assert time.monotonic() - began < 5
    assert f"answers {code} (HTTP status {status}), for 1 seconds" in message
