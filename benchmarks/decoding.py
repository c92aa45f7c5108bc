"""Speed of decoding with the block-recurrent transformer: one JSON object a preset.

    python -m benchmarks.decoding                             # both presets, on one thread
    python -m benchmarks.decoding --preset=small --rounds=2
    python -m benchmarks.decoding --peer="python peer.py --preset d256 --generate 16"

Greedy, one row, float32, on one core, through `sampling.generate_stream`, in chunks of 32 tokens:
* `tokens_per_cpu_s` after a prompt of 1,024 tokens: over one whole block of tokens, with the update
  of the state that is in it; the median of `--rounds`;
* `long_over_short`: CPU time of 32 tokens with 65,536 tokens behind them over that with 1,024, the
  median over pairs of chunks that stand at the same place of a block and are drawn in turns;
* `compilations_while_timed`: counted by jax itself.

The cache does not grow: both lengths run one compiled program on arrays of one shape, and only what
these hold differs, the numbers `position` and `length` among it. The 65,536 tokens are read as a
prompt, which leaves the cache that steps would have left (`tests/models/test_decoding.py`); with
`--grow` all but the first 1,024 are generated one by one.

`--peer` runs a command, before and after ours and on the same core, that prints JSON lines with
`preset`, `generate_s_per_token_cpu` and `generate_prefix`; the better of both goes into the ratio
`over_peer`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator

from benchmarks.block_recurrent import PRESETS, new_model, peer_rows, positive

SHORT, LONG, CHUNK = 1024, 65536, 32


def main() -> None:
    """Measures the presets and the peer around them; prints a line for each preset."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", action="append", choices=sorted(PRESETS))
    parser.add_argument("--rounds", type=positive, default=12, help="blocks at each length")
    parser.add_argument("--grow", action="store_true", help="generate what lies behind, too")
    parser.add_argument("--peer", help="a command, see above")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, inherited by the peer
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for name in args.preset or sorted(PRESETS):
        peers = [] if args.peer is None else peer_rows(args.peer, name)
        ours = measure(name, args.rounds, args.grow)
        peers += [] if args.peer is None else peer_rows(args.peer, name)
        print(json.dumps(ours | compared(ours, peers)), flush=True)


def compared(ours: dict, peers: list[dict]) -> dict:
    """The ratio to the best time of the peers, if there are any."""
    if not peers:
        return {}
    best = min(peers, key=lambda row: row["generate_s_per_token_cpu"])
    return {
        "peer": best.get("implementation", "peer"),
        "peer_prefix": best["generate_prefix"],
        "peer_tokens_per_cpu_s": round(1 / best["generate_s_per_token_cpu"], 2),
        "over_peer": round(ours["tokens_per_cpu_s"] * best["generate_s_per_token_cpu"], 1),
    }


def measure(name: str, num_rounds: int, grow: bool) -> dict:
    """Times tokens at both lengths, chunk by chunk in turns."""
    import jax

    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compilations.append(event) if "backend_compile" in event else None
    )
    preset = PRESETS[name]
    model = new_model(preset, depth=4, recurrent=(2,))
    num_chunks = preset["window"] // CHUNK
    long = stream(model, LONG, num_rounds * num_chunks, grow)
    stream(model, SHORT, num_chunks, grow=False)
    compilations.clear()
    short_s, long_s = [], []
    for _ in range(num_rounds):
        short = stream(model, SHORT, num_chunks, grow=False)
        for _ in range(num_chunks):
            short_s.append(seconds(short))
            long_s.append(seconds(long))
    rounds = [sum(short_s[i : i + num_chunks]) for i in range(0, len(short_s), num_chunks)]
    ratios = [b / a for a, b in zip(short_s, long_s, strict=True)]
    return {
        "preset": name,
        **{key: preset[key] for key in ("width", "head_dim", "window", "num_states")},
        "prefix": SHORT,
        "tokens_per_cpu_s": round(preset["window"] / statistics.median(rounds), 1),
        "tokens_per_cpu_s_by_round": [round(preset["window"] / s, 1) for s in rounds],
        "long": LONG,
        "grown": grow,
        "long_over_short": round(statistics.median(ratios), 4),
        "long_over_short_in_all": round(sum(long_s) / sum(short_s), 4),
        "chunks": len(ratios),
        "compilations_while_timed": len(compilations),
        "jax": jax.__version__,
    }


def stream(model, length: int, num_chunks: int, grow: bool) -> Iterator:
    """Greedy chunks, the first of which, drawn here with the prompt's reading, is left out."""
    import jax
    import numpy as np

    from jaxlab.sampling import generate_stream

    behind = length - SHORT if grow else 0
    prompt = np.random.default_rng(0).integers(0, 256, length - behind)
    chunks = generate_stream(
        model,
        [prompt],
        num_tokens=behind + CHUNK * (num_chunks + 1),
        key=jax.random.key(0),
        temperature=0.0,
        chunk=CHUNK,
    )
    for _ in range(behind // CHUNK + 1):
        next(chunks)
    return chunks


def seconds(chunks: Iterator) -> float:
    """CPU seconds of the next chunk."""
    start = time.process_time()
    next(chunks)
    return time.process_time() - start


if __name__ == "__main__":
    main()
