"""The walk through a dataset, slot by slot, with lists and loops; the shuffles are the only thing taken from infd."""

from infd.data.order import ROWS, SHARDS, WINDOW_SHARDS, WINDOWS, random_words


def epoch_walk(shards: list[list[int]], *, batch: int, seed: int, epoch: int) -> list[list[int]]:
    """For each slot the rows it shows in one epoch. shards: the rows of the split in each shard."""
    num_rows = sum(len(shard) for shard in shards)
    shard_keys = random_words(len(shards), seed=seed, purpose=SHARDS, index=epoch).tolist()
    row_keys = iter(random_words(num_rows, seed=seed, purpose=ROWS, index=epoch).tolist())
    shuffled = [[row for _, row in sorted((next(row_keys), row) for row in shard)] for shard in shards]
    walk = []  # (row, shard)
    for _, index in sorted((key, index) for index, key in enumerate(shard_keys)):
        walk += [(row, index) for row in shuffled[index]]

    steps = num_rows // batch + (num_rows % batch > 0)
    window_keys = iter(random_words(batch * steps, seed=seed, purpose=WINDOWS, index=epoch).tolist())
    slots = []
    for slot in range(batch):
        part = [walk[(slot * steps + step) % num_rows] for step in range(steps)]
        rows: list[int] = []
        for window in windows(part):
            rows += [row for _, row in sorted((next(window_keys), row) for row in window)]
        slots.append(rows)
    return slots


def windows(part: list[tuple[int, int]]) -> list[list[int]]:
    """The (row, shard) of one slot, cut where it comes to its 5th, 9th, … stretch of one shard."""
    cuts: list[list[int]] = []
    stretches, last = 0, None
    for row, shard in part:
        if shard != last:
            if stretches % WINDOW_SHARDS == 0:
                cuts.append([])
            stretches, last = stretches + 1, shard
        cuts[-1].append(row)
    return cuts
