"""A hub of your own, over gRPC: blocks up unchanged, desired state and model files down, one connection for all."""

from outstation.providers.hub.provider import HubProvider

__all__ = ["HubProvider"]
