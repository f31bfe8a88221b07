"""A file with run-time masks made ready for a browser: its copy, samples, and the runtime that runs it there."""
