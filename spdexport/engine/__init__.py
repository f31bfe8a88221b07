"""Where work over many samples is done: in this process, or on workers elsewhere whose partial results add up.

Moments, importances, effects of ablations and losses are sums over samples. Each is described by a ``Work`` of plain
values, which a worker opens once and does for one ``Shard`` after another; an ``Engine`` merges what comes of them.
"""
