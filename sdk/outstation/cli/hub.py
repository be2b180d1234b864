"""``outstation hub``: take what stations send."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from outstation.cli.process import Verbose, log_to_stderr, say_ready, stop_on_signals


def hub(
    *,
    listen: Annotated[
        str, typer.Option("--listen", help="HOST:PORT to take stations at; port 0 is any free one.")
    ] = "127.0.0.1:8445",
    data: Annotated[Path, typer.Option("--data", help="The hub's own folder.")] = Path("outstation-hub"),
    parquet: Annotated[
        Path | None, typer.Option("--parquet", help="Where records go; else DATA/parquet.", show_default=False)
    ] = None,
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
    insecure: Annotated[bool, typer.Option("--insecure", help="Plain text beyond this machine.")] = False,
    drain_interval: Annotated[
        float, typer.Option("--drain-interval", min=0.05, help="Seconds between writes of Parquet files.")
    ] = 1.0,
    verbose: Verbose = False,
) -> None:
    """Take records from stations until SIGTERM, write them to Parquet files, and serve desired state and models.

    Example: outstation hub --listen 0.0.0.0:8445 --tls-cert hub.pem --tls-key hub.key --tls-ca stations.pem
    """
    from outstation_hub import Hub, HubSettings  # noqa: PLC0415  grpc, which --help does not need

    log_to_stderr(verbose)
    settings = HubSettings(
        listen=listen,
        data_dir=str(data),
        parquet=_text(parquet),
        repository=_text(repository),
        certificate=_text(tls_cert),
        key=_text(tls_key),
        ca=_text(tls_ca),
        operators=tuple(operator or ["operator"]),
        insecure=insecure,
        drain_interval=drain_interval,
    )
    stop = threading.Event()
    stop_on_signals(stop.set)
    with Hub(settings) as running:
        say_ready(f"hub ready on {running.address}")
        stop.wait()


def _text(path: Path | None) -> str:
    return "" if path is None else str(path)
