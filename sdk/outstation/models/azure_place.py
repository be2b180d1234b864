"""A repository in a blob container: ``az://CONTAINER/PREFIX``. The one file that needs ``azure-storage-blob``
(the extra ``azure``).

The account, its key or its shared access signature come as a connection string from the environment or from a file.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from outstation.clock import Clock, SystemClock
from outstation.errors import (
    AccessDeniedError,
    DeadlineError,
    LinkDownError,
    MissingExtraError,
    ModelNotFoundError,
    OutstationError,
    ProviderUnavailableError,
    RepositoryError,
    SettingsError,
    mapped_os_errors,
)
from outstation.models.cloud_place import CloudPlace
from outstation.models.place import MAX_METADATA_BYTES, Content

try:
    from azure.core import MatchConditions
    from azure.core.exceptions import (
        AzureError,
        HttpResponseError,
        ResourceExistsError,
        ResourceModifiedError,
        ResourceNotFoundError,
        ServiceRequestTimeoutError,
        ServiceResponseTimeoutError,
    )
    from azure.storage.blob import ContainerClient, ContainerSasPermissions, generate_container_sas
except ImportError as exc:
    raise MissingExtraError("azure", "A repository in Azure Blob Storage") from exc

VARIABLE = "AZURE_STORAGE_CONNECTION_STRING"
# How long a signature of our own is good: for the request that is made at once, on a clock that is a little off.
URL_LIFETIME = datetime.timedelta(minutes=15)
# A try and two more, some seconds apart: whoever publishes is waiting.
_PATIENCE: dict[str, Any] = {
    "connection_timeout": 10,
    "read_timeout": 60,
    "retry_total": 2,
    "initial_backoff": 0,
    "increment_base": 2,
    "random_jitter_range": 1,
}
# A connection string has some hundred characters; a file that is larger holds something else.
_MAX_CONNECTION_BYTES = 64 << 10
_DENIED = {400, 401, 403}
_HINT = "Check the connection string, what its key or signature may do, and this machine's clock."


class AzurePlace(CloudPlace):
    """A place (see :class:`outstation.models.place.Place`), and the source of a device. Thread-safe."""

    def __init__(self, uri: str, connection_file: str = "", clock: Clock = SystemClock()) -> None:
        """As :class:`CloudPlace`.

        The connection string is what *connection_file* holds, else ``$AZURE_STORAGE_CONNECTION_STRING``; a file is
        read again when the service refuses, so that a signature may be renewed there. SettingsError when it is none.
        """
        super().__init__(uri)
        self._connection_file = connection_file
        self._clock = clock
        self._connection = self._read_connection()
        self._client = self._connected(self._connection)

    def read(self, path: str) -> Content:
        with self._mapped(path):
            found = self._client.download_blob(self._prefix + path)
            if found.size > MAX_METADATA_BYTES:
                raise RepositoryError(f"{path} is larger than the {MAX_METADATA_BYTES} bytes that metadata may have.")
            return Content(found.readall(), found.properties.etag)

    def put(self, file: Path, path: str) -> None:
        with mapped_os_errors(doing="read the file", path=file), file.open("rb") as data, self._mapped(path):
            self._client.upload_blob(self._prefix + path, data, overwrite=True)

    def create(self, path: str, data: bytes) -> bool:
        return self._upload_if(path, data, overwrite=False)

    def exchange(self, path: str, data: bytes, mark: str) -> bool:
        if not mark:
            return self.create(path, data)
        return self._upload_if(path, data, overwrite=True, etag=mark, match_condition=MatchConditions.IfNotModified)

    def delete(self, path: str) -> None:
        with self._mapped(path):
            try:
                self._client.delete_blob(self._prefix + path)
            except ResourceNotFoundError:
                return

    def _upload_if(self, path: str, data: bytes, **condition: Any) -> bool:
        with self._mapped(path):
            try:
                self._client.upload_blob(self._prefix + path, data, **condition)
            except (ResourceExistsError, ResourceModifiedError):
                return False
            except ResourceNotFoundError:
                if "etag" in condition:
                    return False  # what was to be exchanged is gone
                raise
        return True

    def _signed_url(self, path: str) -> str:
        base, _, signature = self._client.url.partition("?")
        return f"{base}/{quote(path)}?{signature or self._signature()}"

    def _signature(self) -> str:
        """A signature that lets read, made with the account's key."""
        now = datetime.datetime.fromtimestamp(self._clock.time_unix_nano() / 1e9, datetime.timezone.utc)
        account = self._client.credential
        return generate_container_sas(
            account.account_name,
            self._name,
            account_key=account.account_key,
            permission=ContainerSasPermissions(read=True),
            expiry=now + URL_LIFETIME,
        )

    def _renewed(self) -> bool:
        with self._mutex:
            connection = self._read_connection()
            if connection == self._connection:
                return False
            self._client, self._connection = self._connected(connection), connection
            return True

    def _read_connection(self) -> str:
        if not self._connection_file:
            found = os.environ.get(VARIABLE, "")
            if not found:
                raise SettingsError(
                    f"{self} needs a connection string.",
                    hint=f"Set {VARIABLE}, or models.azure_connection_file on a device.",
                )
            return found
        try:
            with Path(self._connection_file).open(encoding="utf-8") as file:
                return file.read(_MAX_CONNECTION_BYTES).strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise SettingsError(f"The connection string in {self._connection_file} cannot be read: {exc}.") from exc

    def _connected(self, connection: str) -> Any:
        try:
            client = ContainerClient.from_connection_string(connection, self._name, **_PATIENCE)
        except ValueError:
            # Not "from": the text of the cause may show a part of the secret.
            raise SettingsError(f"The connection string for {self} is not one.", hint=_HINT) from None
        if "?" not in client.url and not hasattr(client.credential, "account_key"):
            raise SettingsError(f"The connection string for {self} has neither a key nor a signature.", hint=_HINT)
        return client

    @contextmanager
    def _mapped(self, path: str) -> Iterator[None]:
        try:
            yield
        except OutstationError:
            raise
        except HttpResponseError as exc:
            raise self._refusal(exc, path) from exc
        except (ServiceRequestTimeoutError, ServiceResponseTimeoutError) as exc:
            raise DeadlineError(f"{self} was silent for too long over {path}.", hint="") from exc
        except AzureError as exc:
            raise LinkDownError(f"{self} cannot be reached for {path}: {type(exc).__name__}.", hint="") from exc

    def _refusal(self, exc: HttpResponseError, path: str) -> OutstationError:
        status, code = exc.status_code or 0, str(getattr(exc, "error_code", "") or "")
        if code == "ContainerNotFound":
            return SettingsError(f"There is no container {self._name}.", hint="Make it first, or correct the address.")
        if isinstance(exc, ResourceNotFoundError):
            return ModelNotFoundError(f"{self} has no {path}.")
        if status in _DENIED:
            return AccessDeniedError(f"{self} refuses {path} ({code}).", hint=_HINT)
        return ProviderUnavailableError(f"{self} cannot take or give {path} now (HTTP {status}, {code}).")
