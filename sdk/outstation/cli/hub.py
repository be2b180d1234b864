"""``outstation hub``: take what stations send."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from outstation.cli.process import Verbose, log_to_stderr, say_ready, stop_on_signals
from outstation.clock import SystemClock, wait_for_signal
from outstation.settings import read_toml

app = typer.Typer(invoke_without_command=True)
Data = Annotated[Path, typer.Option("--data", help="The hub's own folder.")]
DATA = Path("outstation-hub")


@app.callback()
def hub(
    context: typer.Context,
    *,
    listen: Annotated[
        str, typer.Option("--listen", help="HOST:PORT to take stations at; port 0 is any free one.")
    ] = "127.0.0.1:8445",
    data: Data = DATA,
    parquet: Annotated[
        Path | None, typer.Option("--parquet", help="Where Parquet files go; else DATA/parquet.", show_default=False)
    ] = None,
    nats: Annotated[str, typer.Option("--nats", help="URLs of NATS servers; records go to JetStream.")] = "",
    kafka: Annotated[str, typer.Option("--kafka", help="HOST:PORT of Kafka brokers, with commas between.")] = "",
    kafka_topic: Annotated[
        str,
        typer.Option("--kafka-topic", help="A prefix if it ends with a dot (a topic a stream), else the one topic."),
    ] = "outstation.",
    kafka_transactions: Annotated[
        bool, typer.Option(help="Write each batch and how far the hub is in one transaction.")
    ] = True,
    kafka_options: Annotated[
        Path | None, typer.Option("--kafka-options", help="TOML file of librdkafka's options.", show_default=False)
    ] = None,
    otlp: Annotated[str, typer.Option("--otlp", help="A collector: http(s)://HOST:4318 or grpc(s)://HOST:4317.")] = "",
    otlp_headers: Annotated[
        Path | None, typer.Option("--otlp-headers", help="TOML file of headers for it.", show_default=False)
    ] = None,
    relay: Annotated[
        str, typer.Option("--relay", help="URLs of NATS servers whose JetStream is the log of many hubs.")
    ] = "",
    repository: Annotated[
        Path | None, typer.Option("--repository", help="A model repository for stations to read.", show_default=False)
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="The hub's certificate (PEM).", show_default=False)
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its key (PEM).", show_default=False)] = None,
    tls_ca: Annotated[
        Path | None, typer.Option("--tls-ca", help="Who signs stations' certificates (PEM).", show_default=False)
    ] = None,
    operator: Annotated[
        list[str] | None,
        typer.Option("--operator", help="Common name of an operator's certificate; may be repeated. Else 'operator'."),
    ] = None,
    enroll_listen: Annotated[
        str, typer.Option("--enroll-listen", help="HOST:PORT where devices redeem tokens (needs `hub init`).")
    ] = "",
    insecure: Annotated[bool, typer.Option("--insecure", help="Plain text beyond this machine.")] = False,
    mqtt_broker: Annotated[
        str, typer.Option("--mqtt-broker", help="HOST:PORT of an MQTT 5 broker with stations behind it.")
    ] = "",
    mqtt_prefix: Annotated[str, typer.Option("--mqtt-prefix", help="What topics begin with.")] = "outstation",
    mqtt_group: Annotated[
        str, typer.Option("--mqtt-group", help="Hubs of one group share what stations send.")
    ] = "outstation",
    mqtt_client_id: Annotated[str, typer.Option("--mqtt-client-id", help="Else a new one at each start.")] = "",
    mqtt_ca: Annotated[
        Path | None, typer.Option("--mqtt-ca", help="Who signed the broker's certificate (PEM).", show_default=False)
    ] = None,
    mqtt_cert: Annotated[
        Path | None, typer.Option("--mqtt-cert", help="The hub's certificate for it (PEM).", show_default=False)
    ] = None,
    mqtt_key: Annotated[Path | None, typer.Option("--mqtt-key", help="Its key (PEM).", show_default=False)] = None,
    mqtt_user: Annotated[
        str, typer.Option("--mqtt-user", help="The hub's user name, where it has no certificate.")
    ] = "",
    mqtt_password: Annotated[str, typer.Option("--mqtt-password", help="env:NAME or file:PATH.")] = "",
    mqtt_insecure: Annotated[
        bool, typer.Option("--mqtt-insecure", help="Plain text to a broker on another machine.")
    ] = False,
    mqtt_max_message: Annotated[
        int, typer.Option("--mqtt-max-message", min=1024, help="Bytes that the hub takes in one message.")
    ] = 1 << 20,
    drain_interval: Annotated[
        float, typer.Option("--drain-interval", min=0.05, help="Seconds between writes of Parquet files.")
    ] = 1.0,
    compact_after: Annotated[
        float, typer.Option("--compact-after", min=1.0, help="Seconds after a day before its Parquet files are joined.")
    ] = 3600.0,
    verbose: Verbose = False,
) -> None:
    """Take records from stations until SIGTERM, write them to Parquet files, and serve desired state and models.

    Example: outstation hub --listen 0.0.0.0:8445 --tls-cert hub.pem --tls-key hub.key --tls-ca stations.pem
    """
    if context.invoked_subcommand is not None:
        return
    from outstation_hub import Hub, HubSettings  # noqa: PLC0415  grpc, which --help does not need

    log_to_stderr(verbose)
    settings = HubSettings(
        listen=listen,
        data_dir=str(data),
        parquet=_text(parquet),
        nats=nats,
        kafka=kafka,
        kafka_topic=kafka_topic,
        kafka_transactions=kafka_transactions,
        kafka_options=_texts(kafka_options),
        otlp=otlp,
        otlp_headers=_texts(otlp_headers),
        relay=relay,
        repository=_text(repository),
        certificate=_text(tls_cert),
        key=_text(tls_key),
        ca=_text(tls_ca),
        operators=tuple(operator or ["operator"]),
        authority=_authority(data, insecure=insecure or tls_cert is not None),
        enroll_listen=enroll_listen,
        insecure=insecure,
        drain_interval=drain_interval,
        mqtt_broker=mqtt_broker,
        mqtt_prefix=mqtt_prefix,
        mqtt_group=mqtt_group,
        mqtt_client_id=mqtt_client_id,
        mqtt_ca=_text(mqtt_ca),
        mqtt_certificate=_text(mqtt_cert),
        mqtt_key=_text(mqtt_key),
        mqtt_user=mqtt_user,
        mqtt_password=mqtt_password,
        mqtt_insecure=mqtt_insecure,
        mqtt_max_message_bytes=mqtt_max_message,
        compact_after=compact_after,
    )
    stop = threading.Event()
    stop_on_signals(stop.set)
    with Hub(settings) as running:
        say_ready(f"hub ready on {running.address}")
        if running.enroll_address:
            print(f"enrolment on {running.enroll_address}", flush=True)
        wait_for_signal(stop)


def _text(path: Path | None) -> str:
    return "" if path is None else str(path)


def _texts(path: Path | None) -> dict[str, str]:
    """A TOML file of names and values; kept out of the command line, where everybody could read a password."""
    return {} if path is None else dict(_flat(read_toml(path)))


def _flat(table: Mapping[str, object], trail: str = "") -> Iterator[tuple[str, str]]:
    """Names with dots, which TOML reads as tables unless they are quoted."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{trail}{name}.")
        else:
            yield f"{trail}{name}", str(value).lower() if isinstance(value, bool) else str(value)


def _authority(data: Path, *, insecure: bool) -> str:
    """The folder of `hub init`, which is used when there is one and nothing else was asked for."""
    return "" if insecure or not _folder(data).is_dir() else str(_folder(data))


def _folder(data: Path) -> Path:
    return data / "authority"


@app.command("init")
def init(
    names: Annotated[list[str] | None, typer.Argument(help="Host names and addresses of this hub.")] = None,
    *,
    data: Data = DATA,
) -> None:
    """Make a certificate authority of your own, and the hub's certificate.

    Example: outstation hub init hub.example 10.0.0.5 --data /var/lib/outstation-hub
    """
    from outstation_hub.authority import Authority  # noqa: PLC0415  cryptography, which --help does not need

    Authority.create(_folder(data), names or [], SystemClock())
    print(f"An authority and the hub's certificate are in {_folder(data)}.")
    print(f"Next: outstation hub enroll STATION --data {data}")


@app.command("enroll")
def enroll(
    station: Annotated[str, typer.Argument(help="The name that the device will have.")],
    *,
    data: Data = DATA,
    hours: Annotated[float, typer.Option("--hours", min=0.01, help="How long the token is good.")] = 48.0,
) -> None:
    """Print a one-time token, with which a device gets its certificate (`outstation enroll`).

    Example: outstation hub enroll press-7 --data /var/lib/outstation-hub
    """
    from outstation_hub.authority import Authority  # noqa: PLC0415  cryptography, which --help does not need

    print(Authority(_folder(data), SystemClock()).make_token(station, hours))


@app.command("operator")
def operator(
    name: Annotated[str, typer.Argument(help="The operator's name, to be given to the hub with --operator.")],
    out: Annotated[Path, typer.Argument(help="The file for certificate and key.")],
    *,
    data: Data = DATA,
) -> None:
    """Write a certificate and key for an operator, for --tls-cert and --tls-key of `outstation fleet`.

    Example: outstation hub operator ada ada.pem --data /var/lib/outstation-hub
    """
    from outstation_hub.authority import Authority, write_private  # noqa: PLC0415

    write_private(out, Authority(_folder(data), SystemClock()).issue_with_key(name))
    print(f"{out} holds the certificate and key of {name}; {_folder(data) / 'ca.pem'} is for --tls-ca.")


@app.command("revoke")
def revoke(
    station: Annotated[str, typer.Argument(help="The station, or operator.")],
    *,
    data: Data = DATA,
) -> None:
    """Believe no certificate that a station was given so far. A running hub follows within a second.

    Example: outstation hub revoke press-7 --data /var/lib/outstation-hub
    """
    from outstation_hub.authority import Authority  # noqa: PLC0415  cryptography, which --help does not need

    count = Authority(_folder(data), SystemClock()).revoke(station)
    print(f"{count} certificates of {station} are no longer believed.")
