"""An archive on a cluster, simulated from measured times: how long, what it costs, what is done twice, what is lost.

Run: python benchmarks/scale_simulation.py --seconds 0.3 [--images 10000000] [--nodes 100] [--docs docs/scale.md]

The pool is that of `madclip.scale.ray_pool`: whoever is free takes the next chunk; what a node was working on when it
failed is worked on again, by anybody, and at the third failure its images are tried one at a time.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from madclip.files import write_between
from madclip.scale.archive import CHUNK
from madclip.scale.ray_pool import TRIES


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    Attributes:
        images: How many are scored.
        nodes: How many nodes there are.
        workers: Workers of a node, each of which works on one chunk at a time.
        seconds: Mean time of an image in a worker.
        spread: Standard deviation of a chunk's time, in parts of its mean.
        slow: Part of the nodes that are stragglers.
        slowness: How much longer an image takes there.
        failing: Part of the nodes that fail, once each, at any moment of the run.
        back: Seconds until a failed node is there again; a straggler of another kind.
        startup: Seconds until a new worker takes its first chunk.
        price: Of an hour of a node.
        seed: Determines all.
    """

    images: int
    nodes: int
    workers: int
    seconds: float
    spread: float = 0.2
    slow: float = 0.05
    slowness: float = 3.0
    failing: float = 0.01
    back: float = 600.0
    startup: float = 10.0
    price: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        hours: Wall time.
        ideal: Wall time were all nodes as fast as each other, and none failed or started.
        tail: Seconds from the first worker that finds nothing left to the end.
        again: Chunks that were begun more than once.
        alone: Chunks whose images were tried one at a time.
        lost: Images without a row.
        cost: Of all nodes over the wall time.
    """

    hours: float
    ideal: float
    tail: float
    again: int
    alone: int
    lost: int
    cost: float


def simulate(cluster: Cluster) -> Outcome:
    """Run the pool over simulated time."""
    dice = np.random.default_rng(cluster.seed)
    chunks = -(-cluster.images // CHUNK)
    pace = np.where(np.arange(cluster.nodes) < round(cluster.slow * cluster.nodes), cluster.slowness, 1.0)
    mean = cluster.seconds * CHUNK
    ideal = chunks * mean / (cluster.nodes * cluster.workers)
    fails = np.full(cluster.nodes, np.inf)
    chosen = dice.choice(cluster.nodes, round(cluster.failing * cluster.nodes), replace=False)
    fails[chosen] = dice.uniform(0, ideal, len(chosen))
    free = [(cluster.startup, worker) for worker in range(cluster.nodes * cluster.workers)]
    heapq.heapify(free)
    waiting: list[int] = []  # workers that found nothing to do
    back: list[tuple[float, int]] = []  # chunks whose node failed, from when that is known
    tries = np.zeros(chunks, int)
    rows = np.zeros(chunks, bool)
    taken, end, idle, alone = 0, 0.0, None, 0
    while free:
        now, worker = heapq.heappop(free)
        node = worker // cluster.workers
        if back and back[0][0] <= now:
            chunk = heapq.heappop(back)[1]
        elif taken < chunks:
            chunk, taken = taken, taken + 1
        else:
            idle = now if idle is None else idle
            waiting.append(worker)
            continue
        tries[chunk] += 1
        time = mean * pace[node] * max(0.1, dice.normal(1, cluster.spread))
        if tries[chunk] > TRIES:
            alone += 1
        if now < fails[node] <= now + time:
            heapq.heappush(back, (fails[node], chunk))
            for other in waiting:
                heapq.heappush(free, (max(now, fails[node]), other))
            waiting.clear()
            heapq.heappush(free, (fails[node] + cluster.back + cluster.startup, worker))
            continue
        rows[chunk] = True
        end = max(end, now + time)
        heapq.heappush(free, (now + time, worker))
    lost = cluster.images - min(cluster.images, int(rows.sum()) * CHUNK)
    cost = end / 3600 * cluster.nodes * cluster.price
    return Outcome(end / 3600, ideal / 3600, end - (idle or end), int((tries > 1).sum()), alone, lost, cost)


def main() -> None:
    """Simulate a quiet and a troubled cluster, and print the table or put it on a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, required=True, help="of an image in a worker, as measured")
    parser.add_argument("--spread", type=float, default=0.2, help="by which chunks of a worker differ, as measured")
    parser.add_argument("--said", default="", help="what was measured, for the table")
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2, help="of a node")
    parser.add_argument("--price", type=float, default=0.2, help="of a node's hour")
    parser.add_argument("--docs", type=Path)
    given = parser.parse_args()
    base = Cluster(given.images, given.nodes, given.workers, given.seconds, given.spread, price=given.price)
    quiet = {"slow": 0.0, "failing": 0.0}
    ways = {
        "no trouble": quiet,
        "5 % of nodes at a third of the speed": quiet | {"slow": 0.05},
        "1 % of nodes fail": quiet | {"failing": 0.01},
        "both": {},
        "both, and 20 % of nodes fail": {"failing": 0.2},
    }
    what = f" ({given.said})" if given.said else ""
    lines = [
        f"{given.images:,} images; {given.nodes} nodes of {given.workers} workers, at {given.price:g} a node's hour.",
        f"An image takes {given.seconds:g} s in a worker{what}; chunks differ by {given.spread:.0%}.",
        "",
        "| trouble | hours | at best | end, from the first idle worker | chunks done twice | images lost | cost |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, changes in ways.items():
        one = simulate(Cluster(**{**base.__dict__, **changes}))
        cells = [
            name,
            f"{one.hours:.2f}",
            f"{one.ideal:.2f}",
            f"{one.tail / 60:.1f} min",
            f"{one.again}",
            f"{one.lost}",
        ]
        lines.append(f"| {' | '.join([*cells, f'{one.cost:,.0f}'])} |")
    text = "\n".join(lines)
    print(text)
    if given.docs:
        write_between(given.docs, "scale simulation", text)


if __name__ == "__main__":
    main()
