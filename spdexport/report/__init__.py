"""Results shown: on the terminal, and as JSON for other programs."""
