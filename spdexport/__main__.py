"""``python -m spdexport``: the command line."""

from spdexport.cli import main

main(prog_name="python -m spdexport")
