"""spdexport."""
