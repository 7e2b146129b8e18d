"""``lpo-ray compare``: arms of a grid, run alike, and what came out of them with intervals. In reading order: ``grid``
(which arms) -> ``study`` (which runs, and whether they are comparable) -> ``runs`` (at once, again, to their end) ->
``outcome`` (what a run's folder says) -> ``statistics`` -> ``findings`` (arm against baseline) -> ``tables``,
``pictures``, ``report``.
"""
