"""``lpo-ray compare``: arms of a grid, run alike, and their results with intervals. In reading order: ``grid``
(which arms) -> ``study`` (which runs, whether comparable) -> ``launcher`` (at once, again, to their end) ->
``outcome`` (what a run's folder says) -> ``bootstrap`` -> ``findings`` (arm against baseline) -> ``tables``,
``pictures``, ``report``.
"""
