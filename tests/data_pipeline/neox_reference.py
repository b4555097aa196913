"""A slow second implementation of what docs/spec/neox.md says, one token and one draw at a time.

It shares no code with the package: its own Mersenne Twister, its own shuffle, the iterative packing
and blending of GPT-NeoX's C++ helpers retold from the specification, lists instead of arrays.
"""

import math


class Twister:
    """MT19937 with the seeding of ``init_genrand`` (Matsumoto and Nishimura 1998)."""

    def __init__(self, seed):
        self.state = [seed & 0xFFFFFFFF]
        for i in range(1, 624):
            last = self.state[-1]
            self.state.append((1812433253 * (last ^ (last >> 30)) + i) & 0xFFFFFFFF)
        self.place = 624

    def word(self):
        if self.place == 624:
            for k in range(624):
                y = (self.state[k] & 0x80000000) | (self.state[(k + 1) % 624] & 0x7FFFFFFF)
                twist = 0x9908B0DF if y & 1 else 0
                self.state[k] = self.state[(k + 397) % 624] ^ (y >> 1) ^ twist
            self.place = 0
        y = self.state[self.place]
        self.place += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        return y ^ (y >> 18)

    def shuffle(self, values):
        for i in range(len(values) - 1, 0, -1):
            mask = (1 << i.bit_length()) - 1
            v = self.word() & mask
            while v > i:
                v = self.word() & mask
            values[i], values[v] = values[v], values[i]


def epochs_for(tokens, seq_len, need):
    epochs = 1
    while (epochs * tokens - 1) // seq_len < need:
        epochs += 1
    return epochs


def maps(lengths, seq_len, epochs, seed):
    """Return (order, bounds, shuffled)."""
    rng = Twister(seed)
    order = list(range(len(lengths))) * epochs
    rng.shuffle(order)
    samples = (epochs * sum(lengths) - 1) // seq_len
    bounds, slot, offset = [(0, 0)], 0, 0
    while len(bounds) <= samples:
        remaining = seq_len + 1
        while remaining > 0:
            left = lengths[order[slot]] - offset
            remaining -= left
            if remaining <= 0:
                offset += remaining + left - 1
            else:
                slot, offset = slot + 1, 0
        bounds.append((slot, offset))
    shuffled = list(range(samples))
    rng.shuffle(shuffled)
    return order, bounds, shuffled


def sample(items, order, bounds, number):
    """Return the ids of one sample."""
    (first, begin), (last, end) = bounds[number], bounds[number + 1]
    if first == last:
        return items[order[first]][begin : end + 1]
    ids = list(items[order[first]][begin:])
    for slot in range(first + 1, last):
        ids += items[order[slot]]
    return ids + items[order[last]][: end + 1]


def blend(weights, size):
    """Return [(file, number of its sample)]."""
    total = 0.0
    for weight in weights:
        total += weight
    shares = [weight / total for weight in weights]
    taken, out = [0] * len(weights), []
    for k in range(size):
        best, most = 0, shares[0] * max(k, 1) - taken[0]
        for i in range(1, len(shares)):
            lag = shares[i] * max(k, 1) - taken[i]
            if lag > most:
                best, most = i, lag
        out.append((best, taken[best]))
        taken[best] += 1
    return out


def stream_of_paths(files, weights, num_samples, seq_len, seed):
    """Return the rows that GPT-NeoX reads from ``train_data_paths``, or None where it wraps."""
    total = 0.0
    for weight in weights:
        total += weight
    shares = [weight / total for weight in weights]
    known = []
    for items, share in zip(files, shares, strict=True):
        lengths = [len(item) for item in items]
        need = math.ceil(num_samples * share * 1.005)
        known.append(maps(lengths, seq_len, epochs_for(sum(lengths), seq_len, need), seed))
    size = sum(len(shuffled) - 1 for _, _, shuffled in known)
    rows = []
    for file, number in blend(shares, size):
        order, bounds, shuffled = known[file]
        if number < len(shuffled):
            rows.append(sample(files[file], order, bounds, shuffled[number]))
        else:
            rows.append(None)
    return rows
