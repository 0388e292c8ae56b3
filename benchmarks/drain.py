"""What it costs when a node is taken away under a training run: Ray's notice first, then the node, while the run goes on.

Three workers on two nodes of this machine. Ray is told that the second node will be taken away in `notice` seconds, as a
watcher of spot instances tells it; then all processes of that node are killed. The run must save at the notice, go on with
two workers from there, and end.

    python -m benchmarks.drain --json FILE
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import tyro
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._raylet import GcsClient

from benchmarks._report import Aim, Report, Row
from jobs._ray import connect
from jobs.demo import Demo, curate_world, encode_world, make_world
from jobs.train import Train, train
from showo2 import recipes
from showo2.train.checkpoint import committed, newest_step
from showo2.train.goodput import FILE
from showo2.train.meters import METRICS, read

PREEMPTION = 2  # Ray's DRAIN_NODE_REASON_PREEMPTION


@dataclass(frozen=True)
class Options:
    """json: where the report goes. steps: of the run. notice: seconds between Ray's notice and the node's end."""

    json: str = "build/benchmarks/drain.json"
    steps: int = 2000
    notice: float = 20.0


@dataclass
class Seen:
    """Moments and steps, as the run's folder shows them."""

    grown: int = 0
    saved_s: float = 0.0
    saved: int = 0
    last: int = 0
    reached: int = 0
    back_s: float = 0.0
    failed: list[str] = field(default_factory=list)


@contextmanager
def second_node() -> Iterator[tuple[str, Node]]:
    """Another node of this process's cluster, with one CPU: its id, and its processes."""
    before = {node["NodeID"] for node in ray.nodes()}
    head = ray._private.worker._global_node
    facts = RayParams(gcs_address=head.gcs_address, num_cpus=1, node_ip_address="127.0.0.1",
                      object_store_memory=100_000_000, temp_dir=head.get_temp_dir_path())
    node = Node(facts, head=False, shutdown_at_exit=False, spawn_reaper=False)
    try:
        while not (new := [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeID"] not in before]):
            time.sleep(0.2)
        yield new[0], node
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=False)


def last_step(out: Path) -> int:
    """The newest step that is logged."""
    lines = read(out / METRICS)
    return int(lines[-1]["step"]) if lines else 0


def workers(out: Path) -> int:
    """How many train now, or were the last to."""
    return json.loads((out / "config.json").read_text())["workers"]


def take_away(out: Path, node_id: str, node: Node, notice: float, seen: Seen) -> None:
    """The notice once three workers train, the node's end when its time has come, and the moment when the run is past it.

    Ray may begin with two, and grow a minute later, from a checkpoint that it asks for then.
    """
    while not last_step(out) or workers(out) != 3:
        time.sleep(0.1)
    seen.grown = last_step(out)
    while last_step(out) < seen.grown + 40:
        time.sleep(0.1)
    told = time.time()
    client = GcsClient(ray.get_runtime_context().gcs_address)
    accepted, why = client.drain_node(node_id, PREEMPTION, "its price rose", int(1000 * (told + notice)))
    if not accepted:
        seen.failed.append(f"Ray refused to drain the node: {why}")
        return
    before = newest_step(out / "checkpoints")
    while newest_step(out / "checkpoints") == before:
        time.sleep(0.05)
    seen.saved_s, seen.saved = time.time() - told, newest_step(out / "checkpoints")
    time.sleep(max(0.0, told + notice - time.time()))
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    gone = time.time()
    time.sleep(1)  # The step that was being made may still be logged.
    seen.reached, seen.last = last_step(out), newest_step(out / "checkpoints")
    while last_step(out) <= seen.reached:
        time.sleep(0.1)
    seen.back_s = time.time() - gone


def run(options: Options) -> Report:
    """One run of tiny-distill on a small world."""
    with tempfile.TemporaryDirectory() as folder:
        demo = Demo(Path(folder), pictures=600, quick=True)
        make_world(demo)
        connect(num_cpus=2)
        curate_world(demo)
        encode_world(demo)
        out, seen = Path(folder) / "run", Seen()
        # No checkpoint but the last, and those that Ray's coming and going asks for.
        recipe = replace(recipes.get("tiny-distill"), steps=options.steps, checkpoint_every=options.steps, log_every=1, keep=20)
        with second_node() as (node_id, node):
            taker = threading.Thread(target=take_away, args=(out, node_id, node, options.notice, seen), daemon=True)
            taker.start()
            outcome = train(Train(recipe, (str(demo.out / "data"),), str(out), workers=3, min_workers=1))
            taker.join(timeout=10)
        facts: list[dict[str, Any]] = [json.loads((place / "facts.json").read() or b"{}")
                                       for place in committed(out / "checkpoints")]
        worlds = {saved["step"]: saved["world"] for saved in facts}
        lost = json.loads((out / FILE).read_text())["lost"]
    if seen.failed:
        raise SystemExit(seen.failed[0])
    rows = [Row("step at which three workers began", seen.grown, ""),
            Row("from the notice to the checkpoint", seen.saved_s, "s"), Row("saved step", seen.saved, ""),
            Row("last step that was saved before the node was gone", seen.last, ""),
            Row("step reached when the node was gone", seen.reached, ""),
            Row("from the node's end until it is past that step", seen.back_s, "s"),
            Row("in which no process trained", lost["down"], "s"), Row("spent on steps made twice", lost["redo"], "s")]  # fmt: skip
    aims = [Aim("the run finished", outcome == "finished", "==", 1), Aim("workers before", worlds[seen.saved], "==", 3),
            Aim("workers after", worlds[options.steps], "==", 2),
            Aim("seconds from notice to checkpoint", seen.saved_s, "<=", options.notice)]  # fmt: skip
    return Report("drain", rows, aims)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    run(options).write(options.json)
