"""Compressing under a budget: what layers lose in each form, which forms to take, how they are fitted, what samples show."""
