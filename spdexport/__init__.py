"""spdexport."""

__version__ = "0.1.0"
