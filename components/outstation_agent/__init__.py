"""The agent: a station in a process of its own, with a unix socket for the applications on the device."""

from outstation_agent.agent import Agent

__all__ = ["Agent"]
