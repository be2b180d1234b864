"""A repository in a bucket: ``s3://BUCKET/PREFIX``. The one file that needs ``boto3`` (the extra ``aws``).

Who is asked, and with which credentials, is boto3's ordinary chain: environment, files, the role of the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
from outstation.models.cloud_place import CloudPlace
from outstation.models.place import Content, read_small

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


class S3Place(CloudPlace):
    """A place (see :class:`outstation.models.place.Place`), and the source of a device. Thread-safe."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        # Made when it is first needed: who gives the credentials may be as far away as the bucket.
        self._connection: tuple[Any, Any] | None = None

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
        return {"Bucket": self._name, "Key": self._prefix + path}

    def _signed_url(self, path: str) -> str:
        with self._mapped(path):
            at = {"Bucket": self._name, "Key": path}
            url: str = self._client.generate_presigned_url("get_object", at, ExpiresIn=URL_LIFETIME)
            return url

    def _renewed(self) -> bool:
        # Somebody writes them into a file, and boto3 read it long ago.
        with self._mutex, self._mapped("the bucket"):
            session = boto3.Session()
            found = _credentials_of(session)
            if self._connection is not None and found == self._connection[1]:
                return False
            self._connection = session.client("s3", config=_CONFIG), found
            return True

    @property
    def _client(self) -> Any:
        with self._mutex, self._mapped("the bucket"):
            if self._connection is None:
                session = boto3.Session()
                self._connection = session.client("s3", config=_CONFIG), _credentials_of(session)
            return self._connection[0]

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
            return SettingsError(f"There is no bucket {self._name}.", hint="Make it first, or correct the address.")
        if status in _MISSING:
            return ModelNotFoundError(f"{self} has no {path}.")
        if status in _DENIED:
            return AccessDeniedError(f"{self} refuses {path} ({code}).", hint=_HINT)
        return ProviderUnavailableError(f"{self} cannot take or give {path} now (HTTP {status}, {code}).")


def _credentials_of(session: Any) -> Any:
    """What the chain finds now: key, secret and token; None when there is nothing."""
    found = session.get_credentials()
    return found and found.get_frozen_credentials()


def _status(exc: ClientError) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
