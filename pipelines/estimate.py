"""What a curation would take, from one tar of each source: `jobs.curate --dry-run`. Nothing is written."""

import time
from dataclasses import dataclass

from pipelines.curate import CurateConfig
from pipelines.facts import read_facts
from pipelines.presets import PRESETS
from pipelines.publish import filesystem
from pipelines.scores import load_measure, measurable, parse_scorers
from pipelines.sources import InputShard, plan

SCORED_ROWS = 64  # measured for a scorer's rate


@dataclass(frozen=True)
class Estimate:
    """`seconds`: {stage: of one worker, for all rows}."""

    tars: int
    bytes: int
    rows: int
    seconds: dict[str, float]

    def lines(self, workers: int, price: float) -> list[str]:
        """For a reader; `price`: of a worker's hour, in any currency."""
        hours = sum(self.seconds.values()) / 3600
        stages = ", ".join(f"{stage} {seconds / 3600:,.2f} h" for stage, seconds in self.seconds.items())
        money = f", {hours * price:,.2f} at {price:g} a worker's hour" if price else ""
        return [
            f"{self.tars:,} tars, {self.bytes / 1e9:,.2f} GB, about {self.rows:,} rows",
            f"work of one worker: {stages}",
            f"about {hours / workers:,.2f} h with {workers} workers{money}; measured here, on one tar of each source",
        ]


def estimate(config: CurateConfig) -> Estimate:
    """Read one tar of each source (the middle one by size), score some of its rows, and scale by bytes and rows."""
    shards = plan(config.source, config.part)
    scorers = parse_scorers(config.score)
    rows, seconds = 0.0, {"facts": 0.0}
    for source in dict.fromkeys(shard.unit.source for shard in shards):
        own = sorted(
            (shard for shard in shards if shard.unit.source == source), key=lambda shard: shard.bytes
        )
        one = own[len(own) // 2]
        factor = sum(shard.bytes for shard in own) / max(one.bytes, 1)
        took, table = _probed(config, one)
        seconds["facts"] += took * factor
        rows += len(table) * factor
        for scorer in scorers:
            good = measurable(scorer, table)
            some = good[:SCORED_ROWS]
            measure = load_measure(scorer)
            started = time.monotonic()
            measure(one.unit.path, some)
            each = (time.monotonic() - started) / max(len(some), 1)
            seconds[scorer.name] = seconds.get(scorer.name, 0.0) + each * len(good) * factor
    return Estimate(len(shards), sum(shard.bytes for shard in shards), round(rows), seconds)


def _probed(config: CurateConfig, shard: InputShard) -> tuple[float, list[dict]]:
    started = time.monotonic()
    fs, path = filesystem(shard.unit.path)
    with fs.open(path, "rb", block_size=8 << 20) as file:
        table = read_facts(file, shard.unit, config.limits, PRESETS[shard.preset])
    return time.monotonic() - started, table.to_pylist()
