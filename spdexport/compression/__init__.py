"""Compressing under a budget: what layers lose in each form, which to take, how to fit them, what samples show."""
