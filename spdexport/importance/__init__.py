"""Masks from data: how important each component is on a data set, and which to keep."""
