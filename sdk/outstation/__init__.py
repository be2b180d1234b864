"""Outstation: run ML in the field; sync when connected."""

from outstation._version import __version__

__all__ = ["__version__"]
