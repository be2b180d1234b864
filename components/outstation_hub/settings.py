"""What an operator may set of a hub."""

from __future__ import annotations

from pathlib import Path

from outstation.errors import SettingsError
from outstation.settings import Seconds, Size, Table
from outstation.wire.address import is_loopback
from outstation.wire.channel import Tls


class HubSettings(Table, frozen=True):
    """All of a hub. Paths of keys and certificates are PEM files."""

    listen: str = "127.0.0.1:8445"  # host:port; port 0 = any free one
    data_dir: str = "outstation-hub"  # everything durable lives below this folder
    parquet: str = ""  # where the Parquet files go; "" = DATA_DIR/parquet, unless there is another sink
    nats: str = ""  # URLs of NATS servers with JetStream, with commas between; "" = none
    nats_stream: str = "OUTSTATION"  # made with the subjects outstation.> when it is missing
    relay: str = ""  # URLs of NATS servers: this hub is one of many, and JetStream is their log; "" = a log of its own
    kafka: str = ""  # host:port of Kafka brokers, with commas between; "" = none
    kafka_topic: str = "outstation."  # a prefix of topics, one a stream, if it ends with a dot; else the one topic
    kafka_transactions: bool = True  # a batch and how far the sink is in one step; brokers must have transactions
    kafka_options: dict[str, str] = {}  # librdkafka's own: TLS, SASL, message.max.bytes
    otlp: str = ""  # where an OpenTelemetry collector is: http(s)://host:4318, or grpc(s)://host:4317; "" = none
    otlp_headers: dict[str, str] = {}  # sent with each request, such as a token
    compact_after: Seconds = 3600.0  # seconds after a day's end, and of rest, before its Parquet files are joined
    repository: str = ""  # a model repository that stations may read; "" = none
    certificate: str = ""
    key: str = ""
    ca: str = ""  # who signs stations' certificates
    authority: str = ""  # folder of the operator's own certificate authority; "" = certificates come from elsewhere
    enroll_listen: str = ""  # host:port where devices get their certificate for a token; "" = nowhere
    insecure: bool = False  # plain text beyond this machine
    operators: tuple[str, ...] = ("operator",)  # common names of certificates that may see and steer the fleet
    max_stations: Size = 1000  # connected at once; each holds two threads and a watch of the desired state a third
    max_message_bytes: Size = 16 << 20  # of one block; a station re-slices to what its own options say
    inbox_bytes: Size = 8 << 30  # on the disk before the sinks have it; then stations are read no further
    min_free_disk_bytes: Size = 64 << 20  # kept free, or a sink could not even write how far it is
    group_interval: Seconds = 0.02  # seconds a block may wait for its fdatasync; an acknowledgement waits as long
    drain_interval: Seconds = 1.0  # seconds between writes of a sink, so that its files are not tiny
    batch_bytes: Size = 16 << 20  # of records, decompressed: what a sink is given at once
    hello_timeout: Seconds = 10.0  # seconds that a connection may stay silent before it says who it is
    keepalive_interval: Seconds = 7.0
    keepalive_timeout: Seconds = 3.0
    mqtt_broker: str = ""  # host:port of a broker with stations behind it; "" = none
    mqtt_prefix: str = "outstation"  # topics begin with PREFIX/STATION/
    mqtt_group: str = "outstation"  # hubs of one group share what stations send
    mqtt_client_id: str = ""  # "" = a new one at each start
    mqtt_ca: str = ""  # who signed the broker's certificate; "" = the authorities this machine trusts
    mqtt_certificate: str = ""
    mqtt_key: str = ""
    mqtt_user: str = ""
    mqtt_password: str = ""  # "env:NAME" or "file:PATH"
    mqtt_insecure: bool = False  # plain text to a broker on another machine
    mqtt_max_message_bytes: Size = 1 << 20  # of one payload; the broker withholds what is larger

    @property
    def data(self) -> Path:
        return Path(self.data_dir)

    @property
    def parquet_dir(self) -> Path:
        return Path(self.parquet) if self.parquet else self.data / "parquet"

    @property
    def sinks(self) -> tuple[str, ...]:
        """The names of the sinks that were asked for."""
        return tuple(name for name in ("parquet", "nats", "kafka", "otlp") if getattr(self, name))

    @property
    def tls(self) -> Tls | None:
        """The files for TLS; None for plain text. SettingsError when neither is in order."""
        if self.authority:
            folder = Path(self.authority)
            return Tls(folder / "ca.pem", folder / "hub.pem", folder / "hub.pem")
        if self.certificate or self.key or self.ca:
            if not (self.certificate and self.key and self.ca):
                raise SettingsError(
                    "TLS needs three files: the hub's certificate, its key, and the authority of the stations."
                )
            return Tls(Path(self.ca), Path(self.certificate), Path(self.key))
        if not self.insecure and not is_loopback(self.listen):
            raise SettingsError(
                f"{self.listen} can be reached from other machines, and there is no certificate.",
                hint="Give --tls-cert, --tls-key and --tls-ca, or --insecure on a network that you trust.",
            )
        return None
