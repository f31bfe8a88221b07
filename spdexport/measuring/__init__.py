"""Measuring what files cost where they run."""
