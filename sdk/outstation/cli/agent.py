"""``outstation agent``: run the station of this device."""

from __future__ import annotations

from outstation.cli.process import (
    DataDir,
    SettingsPath,
    Verbose,
    load_settings,
    log_to_stderr,
    say_ready,
    stop_on_signals,
)


def agent(settings: SettingsPath = None, data: DataDir = None, verbose: Verbose = False) -> None:
    """Run the station of this device until SIGTERM: buffer, uplink, models, and a socket for applications.

    Example: outstation agent --settings /etc/outstation/outstation.toml
    """
    from outstation_agent import Agent  # noqa: PLC0415  the other commands need no gRPC

    log_to_stderr(verbose)
    process = Agent(load_settings(settings, data))
    stop_on_signals(process.stop)
    say_ready(f"agent ready on {process.socket}")
    process.run()
