"""Going on after a kill: steps since the newest checkpoint are computed again from exactly the groups that made them.

The ledger is the log of what was trained, a checkpoint is where that log may be cut. What comes out has the digest that
the run had recorded, so its metrics, its samples and the groups that wait to be trained stay as they are.
"""

from __future__ import annotations

from lpo_ray.interfaces import Components
from lpo_ray.training.ledger import Ledger
from lpo_ray.training.loop import BatchSettings, make_batch


async def redo(components: Components, ledger: Ledger, settings: BatchSettings, step: int) -> int:
    """Compute the steps that were committed after ``step``, whose weights the learner holds, again; returns the last.
    It ends early at a step whose groups are not in the ledger any more.
    """
    for version in ledger.commits_after(step):
        groups, anchor = ledger.batch(version.step)
        if not groups:
            break
        _, batch = await make_batch(components, groups, anchor, settings, step)
        await components.learner.project(batch)
        step = version.step
    return step
