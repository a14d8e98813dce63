"""Ranked candidates in, verdicts of a language model on the uncertain few out: it re-ranks, and never adds or deletes.

    selection  →  prompt  →  pool (transport, limits, reply; cache.verdicts)  →  fusion

`judge` is the only module here that knows this order.
"""
