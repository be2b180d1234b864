"""A repository in a bucket: ``s3://BUCKET/PREFIX``. The one file that needs ``boto3`` (the extra ``aws``).

Files are read through URLs that are signed anew for each request, so that one code resumes downloads from anywhere.
Who is asked, and with which credentials, is boto3's ordinary chain: environment, files, the role of the device.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from outstation.errors import (
    AccessDeniedError,
    DeadlineError,
    LinkDownError,
    MissingExtraError,
    ModelNotFoundError,
    OutstationError,
    ProviderUnavailableError,
    SettingsError,
    mapped_os_errors,
)
from outstation.models.place import Content, read_small
from outstation.provider import ByteStream
from outstation.wire.urls import UrlFiles

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectTimeoutError,
        CredentialRetrievalError,
        HTTPClientError,
        NoCredentialsError,
        PartialCredentialsError,
        ReadTimeoutError,
    )
    from botocore.exceptions import ConnectionError as BotocoreConnectionError
except ImportError as exc:
    raise MissingExtraError("aws", "A repository in S3") from exc

# Seconds for which a signed URL is good: for the request that is made at once, on a clock that is a little off.
URL_LIFETIME = 900
_CONFIG = Config(
    signature_version="s3v4",
    connect_timeout=10,
    read_timeout=60,
    retries={"mode": "standard", "max_attempts": 3},
)
# Of a conditional write: the condition is not met, or somebody else writes there at this moment.
_NOT_MET = {409, 412}
_MISSING = {404}
_DENIED = {400, 401, 403}
_HINT = "Check the credentials, the bucket's policy, AWS_REGION and this machine's clock."


class S3Place:
    """A place (see :class:`outstation.models.place.Place`), and the source of a device. Thread-safe."""

    def __init__(self, uri: str) -> None:
        """*uri* is ``s3://BUCKET`` or ``s3://BUCKET/PREFIX``; SettingsError if it is not. Asks nobody."""
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not self._bucket or "?" in uri:
            raise SettingsError(f"s3://{self._bucket} is no s3://BUCKET/PREFIX.")
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._files = UrlFiles(self._url)
        self._mutex = threading.Lock()
        with self._mapped("the bucket"):
            session = boto3.Session()
            self._client, self._credentials = _client_of(session), _credentials_of(session)

    def __str__(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def __repr__(self) -> str:
        return f"<S3Place {self}>"

    def open(self, path: str, offset: int, timeout: float) -> AbstractContextManager[ByteStream]:
        """As :meth:`outstation.models.fetch.Source.open`."""
        return self._files.open(path, offset, timeout)

    def publishing(self) -> AbstractContextManager[None]:
        return nullcontext()  # nobody is seen before the exchange

    def local(self, path: str) -> Path | None:
        return None

    def read(self, path: str) -> Content:
        with self._mapped(path):
            answer = self._client.get_object(**self._at(path))
            with answer["Body"] as body:
                return Content(read_small(body, path), answer["ETag"])

    def put(self, file: Path, path: str) -> None:
        with mapped_os_errors(doing="read the file", path=file), file.open("rb") as data, self._mapped(path):
            self._client.put_object(**self._at(path), Body=data)

    def create(self, path: str, data: bytes) -> bool:
        return self._put_if(path, data, IfNoneMatch="*")

    def exchange(self, path: str, data: bytes, mark: str) -> bool:
        return self._put_if(path, data, **({"IfMatch": mark} if mark else {"IfNoneMatch": "*"}))

    def delete(self, path: str) -> None:
        with self._mapped(path):
            self._client.delete_object(**self._at(path))

    def _put_if(self, path: str, data: bytes, **condition: str) -> bool:
        with self._mapped(path):
            try:
                self._client.put_object(**self._at(path), Body=data, **condition)
            except ClientError as exc:
                if _status(exc) in _NOT_MET or ("IfMatch" in condition and _status(exc) in _MISSING):
                    return False
                raise
        return True

    def _at(self, path: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + path}

    def _url(self, path: str, again: bool) -> str:
        """A signed URL of *path*; *again*: with credentials that were looked up anew, "" if they are the same."""
        with self._mapped(path):
            if again and not self._renewed():
                return ""
            url: str = self._client.generate_presigned_url("get_object", self._at(path), ExpiresIn=URL_LIFETIME)
            return url

    def _renewed(self) -> bool:
        """Whether there are other credentials now: somebody writes them into a file, and boto3 read it long ago."""
        with self._mutex:
            session = boto3.Session()
            found = _credentials_of(session)
            if found == self._credentials:
                return False
            self._client, self._credentials = _client_of(session), found
            return True

    @contextmanager
    def _mapped(self, path: str) -> Iterator[None]:
        try:
            yield
        except OutstationError:
            raise
        except ClientError as exc:
            raise self._refusal(exc, path) from exc
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as exc:
            raise AccessDeniedError(f"There are no AWS credentials for {self}.", hint=_HINT) from exc
        except (ConnectTimeoutError, ReadTimeoutError) as exc:
            raise DeadlineError(f"{self} was silent for too long over {path}.", hint="") from exc
        except (BotocoreConnectionError, HTTPClientError) as exc:
            raise LinkDownError(f"{self} cannot be reached for {path}: {type(exc).__name__}.", hint="") from exc
        except BotoCoreError as exc:
            raise SettingsError(f"{self} cannot be asked: {exc}", hint=_HINT) from exc

    def _refusal(self, exc: ClientError, path: str) -> OutstationError:
        status, code = _status(exc), exc.response["Error"].get("Code", "")
        if code == "NoSuchBucket":
            return SettingsError(f"There is no bucket {self._bucket}.", hint="Make it first, or correct the address.")
        if status in _MISSING:
            return ModelNotFoundError(f"{self} has no {path}.")
        if status in _DENIED:
            return AccessDeniedError(f"{self} refuses {path} ({code}).", hint=_HINT)
        return ProviderUnavailableError(f"{self} cannot take or give {path} now (HTTP {status}, {code}).")


def _client_of(session: Any) -> Any:
    return session.client("s3", config=_CONFIG)


def _credentials_of(session: Any) -> Any:
    """What the chain finds now: key, secret and token; None when there is nothing."""
    found = session.get_credentials()
    return found and found.get_frozen_credentials()


def _status(exc: ClientError) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
