"""Real stand-ins of the clouds' stores on loopback: moto's S3, and Azurite's blobs."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import uuid
from pathlib import Path

import boto3
from azure.storage.blob import BlobServiceClient
from moto.server import ThreadedMotoServer

from support import wait_until

AZURITE = Path(__file__).parents[1] / "build/azurite/node_modules/.bin/azurite-blob"
# The account that every Azurite has, as its documentation gives it.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class S3:
    """moto's server, with a bucket for each test."""

    def __init__(self, folder):
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self):
        self._server.stop()

    def environ(self, port):
        """What a client needs to reach it, or the link at *port* before it."""
        nowhere = os.devnull
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "AKIATEST",
            "AWS_SECRET_ACCESS_KEY": "secret-of-a-test",
            "AWS_DEFAULT_REGION": "eu-north-1",
            "AWS_CONFIG_FILE": nowhere,
            "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        }

    def bucket(self):
        return Bucket(self.port)


class Bucket:
    def __init__(self, port):
        self._client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id="a",
            aws_secret_access_key="b",
            region_name="eu-north-1",
        )
        self._name = f"models-{uuid.uuid4().hex}"
        self._client.create_bucket(Bucket=self._name, CreateBucketConfiguration={"LocationConstraint": "eu-north-1"})
        self.uri = f"s3://{self._name}/fleet/a"

    def put(self, path, data):
        self._client.put_object(Bucket=self._name, Key=f"fleet/a/{path}", Body=data)

    def get(self, path):
        return self._client.get_object(Bucket=self._name, Key=f"fleet/a/{path}")["Body"].read()

    def paths(self):
        found = self._client.list_objects_v2(Bucket=self._name).get("Contents", [])
        return sorted(entry["Key"].removeprefix("fleet/a/") for entry in found)


class Azurite:
    """The blob service of Azurite, with a container for each test."""

    def __init__(self, folder):
        self.port = free_port()
        command = [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        command += ["--silent", "--skipApiVersionCheck", "--inMemoryPersistence", "--disableTelemetry"]
        self._process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers, 60.0)

    def _answers(self):
        assert self._process.poll() is None, "Azurite ended"
        with socket.socket() as end:
            return end.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)

    def environ(self, port):
        return {"AZURE_STORAGE_CONNECTION_STRING": connection(port, f"AccountKey={ACCOUNT_KEY}")}

    def bucket(self):
        return Container(self.port)


def connection(port, secret):
    """A connection string; *secret* is AccountKey=… or SharedAccessSignature=…"""
    account = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};" if secret.startswith("AccountKey") else ""
    return f"{account}{secret};BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"


class Container:
    def __init__(self, port):
        service = BlobServiceClient.from_connection_string(connection(port, f"AccountKey={ACCOUNT_KEY}"))
        self.name = f"models-{uuid.uuid4().hex}"
        self._client = service.create_container(self.name)
        self.uri = f"az://{self.name}/fleet/a"

    def put(self, path, data):
        self._client.upload_blob(f"fleet/a/{path}", data, overwrite=True)

    def get(self, path):
        return self._client.download_blob(f"fleet/a/{path}").readall()

    def paths(self):
        return sorted(name.removeprefix("fleet/a/") for name in self._client.list_blob_names())


def lacks(kind):
    """What is missing on this machine for a server of that *kind*, or ""."""
    if kind is Azurite and (shutil.which("node") is None or not AZURITE.exists()):
        return "needs Azurite (make azurite)"
    return ""
