"""Rules: each looks at the facts and says which rows to drop; its name is the reason in the ledger."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Rules:
    """Thresholds. `min_side`: least width and least height in pixels."""

    min_side: int = 512


def missing_caption(facts: pa.Table, rules: Rules) -> pa.Array:
    """Pairs without a text, or with an empty one."""
    return pc.and_(pc.equal(facts["kind"], "pair"), pc.is_null(facts["text"]))


def too_small(facts: pa.Table, rules: Rules) -> pa.Array:
    """Pictures with a side shorter than `min_side`."""
    return pc.less(pc.min_element_wise(facts["width"], facts["height"]), rules.min_side)


def animated(facts: pa.Table, rules: Rules) -> pa.Array:
    """Pictures of several frames."""
    return facts["animated"]


# In this order: a row is dropped for the first that applies.
RULES: tuple[Callable[[pa.Table, Rules], pa.Array], ...] = (missing_caption, too_small, animated)
COLUMNS = ("kind", "text", "width", "height", "animated")  # what the rules look at


def reasons(facts: pa.Table, rules: Rules) -> pa.Array:
    """For each row the name of the first rule that drops it, or null."""
    result = pa.nulls(len(facts), pa.string())
    for rule in reversed(RULES):
        victims = pc.fill_null(rule(facts, rules), False)
        result = pc.if_else(victims, rule.__name__, result)
    return result.combine_chunks() if isinstance(result, pa.ChunkedArray) else result
