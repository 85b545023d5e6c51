"""The object store in a bucket of a server that speaks S3."""

import hashlib
import io
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urljoin

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    CredentialRetrievalError,
    EndpointConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    InvalidRegionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSLError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError, NameResolutionError

from triangulation_pipeline.address import Address, by_proxy, parse_address
from triangulation_pipeline.storage.errors import StorageError
from triangulation_pipeline.storage.objects import S3Location, StoredObject, checked_data, checked_key
from triangulation_pipeline.storage.retry import DEADLINE_S, retry
from triangulation_pipeline.validation import shown

PART_BYTES = 16 * 2**20
"""Larger objects are sent in parts of this size."""

# Limits of an object and of any other answer, so that an endless answer of a foreign server does not fill the memory.
MOST_OBJECT_BYTES = 2**31
MOST_ANSWER_BYTES = 2**24

_TRANSFER = TransferConfig(
    multipart_threshold=PART_BYTES,
    multipart_chunksize=PART_BYTES,
    max_concurrency=4,
    preferred_transfer_client="classic",
)

# The server is unreachable, overloaded, or lost the parts of an upload in a restart: the next try may succeed.
_PASSING_CODES = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "OperationAborted", "NoSuchUpload"}
_PASSING_ERRORS = (BotoConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError)

_REFUSALS = {
    "SignatureDoesNotMatch": "the secret is wrong (AWS_SECRET_ACCESS_KEY)",
    "InvalidAccessKeyId": "the access key is unknown there (AWS_ACCESS_KEY_ID)",
    "ExpiredToken": "the session token has expired (AWS_SESSION_TOKEN)",
    "InvalidToken": "the session token is wrong (AWS_SESSION_TOKEN)",
    "InvalidLocationConstraint": "the region is unknown there (AWS_DEFAULT_REGION)",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
} | dict.fromkeys(("AccessDenied", "AllAccessDisabled", "Forbidden", "403"), "these credentials may not do that")
_WRONG_REGION = {
    "301",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidRegion",
    "PermanentRedirect",
}

_NO_CREDENTIALS = "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

_T = TypeVar("_T")


class S3Store:
    """An ``ObjectStore`` in a bucket, below a prefix. A location is ``s3://bucket/prefix/key``.

    ``client`` is a boto3 S3 client with an endpoint and credentials. While the server is unreachable, overloaded or
    failing, an operation is retried after growing pauses, until ``deadline_s`` seconds have passed (the last try ends
    by the client's own timeouts). No message shows what a server or a library says about credentials.
    """

    def __init__(self, client: Any, bucket: str, prefix: str = "", *, deadline_s: float = DEADLINE_S) -> None:
        self._client = client
        self._address = parse_address(client.meta.endpoint_url)
        client.meta.events.register(
            "before-send.s3", partial(_send, client, self._address), unique_id="triangulation_pipeline"
        )
        self._bucket = bucket
        self._prefix = f"{checked_key(prefix)}/" if prefix else ""
        self._deadline_s = deadline_s

    @property
    def root(self) -> str:
        """The URL with which all locations begin."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def open(self) -> None:
        """Checks that the bucket accepts these credentials. A missing bucket is made. Raises StorageError."""
        # Not HEAD: its answers have no body, so that a wrong secret would look like a forbidden bucket.
        missing = self._retry(f"object store {self.root} cannot be opened", self._bucket_is_missing)
        if missing:
            self._retry(f"object store {self.root} has no bucket yet, and it cannot be made", self._make_bucket)

    def put(self, key: str, data: bytes) -> StoredObject:
        """Returns when the server has confirmed size and digest. A failed upload leaves no object: a large object
        appears when its last part has arrived, and the parts of a failed upload are dropped."""
        digest = hashlib.sha256(data).hexdigest()
        name = self._name(key)
        failed = f"object {key!r} cannot be stored under {self.root}"

        def upload() -> dict[str, Any]:
            self._client.upload_fileobj(
                io.BytesIO(data), self._bucket, name, ExtraArgs={"Metadata": {"sha256": digest}}, Config=_TRANSFER
            )
            return self._client.head_object(Bucket=self._bucket, Key=name)

        found = self._retry(failed, upload)
        # Metadata are headers, and some servers write headers in capitals.
        confirmed = {name.lower(): value for name, value in found.get("Metadata", {}).items()}.get("sha256")
        if found.get("ContentLength") != len(data) or confirmed != digest:
            raise StorageError(
                f"{failed}: sent were {len(data)} bytes of digest {digest}, the server has "
                f"{found.get('ContentLength')} bytes of digest {confirmed and shown(confirmed)}"
            )
        return StoredObject(self.location(key), digest)

    def get(self, key: str, sha256: str) -> bytes:
        """See ``ObjectStore``."""
        name = self._name(key)

        def download() -> bytes | None:
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=name)["Body"]
                content = bytearray()
                while chunk := body.read(PART_BYTES):
                    content += chunk
                    if len(content) > MOST_OBJECT_BYTES:
                        raise StorageError(f"object {key!r} is larger than any of ours ({MOST_OBJECT_BYTES:,} bytes)")
                return bytes(content)
            except ClientError as error:
                if _code(error) == "NoSuchKey":
                    return None
                raise
            except FlexibleChecksumError:
                raise StorageError(f"object {key!r} is damaged: its bytes are not those of its checksum") from None

        data = self._retry(f"object {key!r} cannot be read under {self.root}", download)
        if data is None:
            raise StorageError(f"object {key!r}, of digest {sha256}, is missing under {self.root}")
        return checked_data(key, data, sha256)

    def delete(self, key: str) -> None:
        """See ``ObjectStore``."""
        name = self._name(key)

        def remove() -> None:
            try:
                self._client.delete_object(Bucket=self._bucket, Key=name)
            except ClientError as error:
                # S3 answers with success here, but some servers do not.
                if _code(error) != "NoSuchKey":
                    raise

        self._retry(f"object {key!r} cannot be deleted under {self.root}", remove)

    def location(self, key: str) -> str:
        """See ``ObjectStore``."""
        return f"{self.root}/{checked_key(key)}"

    def key(self, location: str) -> str:
        """See ``ObjectStore``."""
        if not location.startswith(f"{self.root}/"):
            raise ValueError(f"{shown(location)} is no place in the object store {self.root}")
        return checked_key(location.removeprefix(f"{self.root}/"))

    def _name(self, key: str) -> str:
        return self._prefix + checked_key(key)

    def _bucket_is_missing(self) -> bool:
        try:
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        except ClientError as error:
            if _code(error) != "NoSuchBucket":
                raise
            return True
        return False

    def _make_bucket(self) -> None:
        region = self._client.meta.region_name
        # A bucket in us-east-1 is made without a constraint; S3 refuses this region as one.
        constraint = {} if region in (None, "aws-global", "us-east-1") else {"LocationConstraint": region}
        place = {"CreateBucketConfiguration": constraint} if constraint else {}
        try:
            try:
                self._client.create_bucket(Bucket=self._bucket, **place)
            except ClientError as error:
                # A server that is not AWS may have no regions.
                if not place or _code(error) != "InvalidLocationConstraint":
                    raise
                self._client.create_bucket(Bucket=self._bucket)
        except ClientError as error:
            # Another process was faster. It is not the bucket of another account: that would not have been missing.
            if _code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise

    def _retry(self, failed: str, act: Callable[[], _T]) -> _T:
        """The result of ``act``, retried until the deadline. Raises StorageError that begins with ``failed``."""

        def why(error: Exception) -> str | None:
            if isinstance(error, _Foreign):
                raise StorageError(f"{failed}: {error}") from None
            if isinstance(error, StorageError):
                return None
            if not isinstance(error, ClientError | BotoCoreError):  # the answer made the library fail in some other way
                raise StorageError(
                    f"{failed}: {self._address} answers, and not as S3 does ({type(error).__name__})"
                ) from None
            if not _passes(error):
                raise StorageError(f"{failed}: {self._reason(error)}") from None
            return self._reason(error)

        return retry(act, failed, why, self._deadline_s)

    def _reason(self, error: ClientError | BotoCoreError) -> str:
        """The error in words of this package. The error's own words may quote URLs, keys and signatures."""
        server = str(self._address)
        if isinstance(error, ClientError):
            code, status = _code(error), _status(error)
            if code == "NoSuchBucket":
                return f"there is no bucket {self._bucket!r} at {server}"
            if code in _REFUSALS:
                return f"{server} refuses, {_REFUSALS[code]}"
            if code in _WRONG_REGION:
                region = str(error.response.get("Error", {}).get("Region", ""))
                right = f"; it is {region!r}" if re.fullmatch(r"[a-z0-9-]{1,40}", region) else ""
                return f"{server} refuses, the region is wrong (AWS_DEFAULT_REGION){right}"
            said = code if re.fullmatch(r"[A-Za-z0-9.]{1,60}", code) else "an error"
            return f"{server} answers {said} (HTTP status {status})"
        if isinstance(error, NoCredentialsError | CredentialRetrievalError):
            return _NO_CREDENTIALS
        if isinstance(error, BotoConnectionError | HTTPClientError | ResponseStreamingError | IncompleteReadError):
            return f"{_broken(error, server)}{by_proxy(self._address)}"
        return f"the request cannot be made ({type(error).__name__})"


class _Foreign(StorageError):
    """A server answers as no S3 server does."""


def _send(client: Any, server: Address, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
    """Sends a request as the library does, but limits the size of the answer and follows no redirection: the library
    would ask S3 for the new address, and thereby the same server, without end."""
    is_object = request.stream_output
    request.stream_output = True
    response = client._endpoint.http_session.send(request)
    # AWS answers so for a bucket in another region, and the library understands it.
    if response.status_code in (301, 302, 303, 307, 308) and "x-amz-bucket-region" not in response.headers:
        raise _Foreign(_redirection(server, response.status_code, str(response.headers.get("location", ""))))
    if is_object and response.status_code < 300:
        return response
    content = bytearray()
    end = time.monotonic() + DEADLINE_S
    try:
        for chunk in response.raw.stream(2**16, decode_content=False):
            content += chunk
            if len(content) > MOST_ANSWER_BYTES or time.monotonic() > end:
                raise _Foreign(f"{server} answers without end")
    except HTTPError as error:
        raise ConnectionClosedError(endpoint_url=str(server), error=error) from None
    whole = HTTPResponse(io.BytesIO(content), preload_content=False)
    return AWSResponse(response.url, response.status_code, response.headers, whole)


def _redirection(server: Address, status: int, location: str) -> str:
    try:
        to = parse_address(urljoin(str(server), location))
    except ValueError:
        to = server
    if str(to) == str(server):
        return f"{server} answers with a redirection (HTTP status {status}), and not as S3 does"
    return f"{server} redirects to {to} (HTTP status {status}); if that is S3, write it in AWS_ENDPOINT_URL_S3"


def _broken(error: BotoCoreError, server: str) -> str:
    if isinstance(error, EndpointConnectionError):
        unknown = isinstance(error.kwargs.get("error"), NameResolutionError)
        return f"the host of {server} is unknown" if unknown else f"{server} refuses the connection"
    if isinstance(error, SSLError):
        return f"no secure connection to {server} can be made"
    if isinstance(error, ConnectionClosedError | ResponseStreamingError | IncompleteReadError):
        return f"{server} breaks the connection off"
    if type(error) is HTTPClientError:
        return f"{server} cannot be asked, or answers not as S3 does ({type(error.kwargs.get('error')).__name__})"
    return f"{server} does not answer"


def make_client() -> Any:
    """A boto3 client by the AWS variables (``AWS_ENDPOINT_URL_S3``, ``AWS_ACCESS_KEY_ID``, ...) and files.

    With an endpoint that is not of AWS, buckets are part of the path (``http://host:9000/bucket``), and need no name in
    the DNS.
    """
    # The store has its own deadline. botocore only repeats each request once, quickly.
    config = Config(retries={"max_attempts": 1, "mode": "standard"})
    # A new session: the one that boto3 keeps has read variables and files earlier.
    return boto3.session.Session().client("s3", config=config)


def open_s3(place: S3Location) -> S3Store:
    """The store in a bucket, which is made if it is missing. Raises StorageError if it cannot be opened."""
    try:
        client = make_client()
        parse_address(client.meta.endpoint_url)
    except InvalidRegionError:
        raise StorageError("AWS_DEFAULT_REGION must be the name of a region, as in eu-south-1") from None
    except ValueError:
        # The library's message quotes the address, which may contain a password.
        raise StorageError("AWS_ENDPOINT_URL_S3 (or AWS_ENDPOINT_URL) must be as in http://host:9000") from None
    except PartialCredentialsError:
        raise StorageError(f"object store {place} cannot be opened: {_NO_CREDENTIALS}") from None
    except ProfileNotFound:
        raise StorageError("AWS_PROFILE names no profile of this machine's AWS settings") from None
    except BotoCoreError as error:
        raise StorageError(f"the AWS variables and files cannot be used ({type(error).__name__})") from None
    store = S3Store(client, place.bucket, place.prefix)
    store.open()
    return store


def _passes(error: ClientError | BotoCoreError) -> bool:
    if isinstance(error, ClientError):
        status = _status(error)
        return status == 429 or (status >= 500 and status != 501) or _code(error) in _PASSING_CODES
    # The subclasses are errors of the network. The class itself is any other failure, as of a proxy's address.
    return isinstance(error, _PASSING_ERRORS) and type(error) is not HTTPClientError


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
