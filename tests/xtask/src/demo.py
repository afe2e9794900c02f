"""Counts words of a file part by part, computes digits of pi between the parts, and keeps notes in a second file."""

import collections
import os
import sys

PARTS = 8
DIGITS = 2200


def pi(digits):
    """The first digits of pi, by Gibbons' unbounded spigot."""
    found = []
    q, r, t, k, n, l = 1, 0, 1, 1, 3, 3
    while len(found) < digits:
        if 4 * q + r - t < n * t:
            found.append(str(n))
            q, r, n = 10 * q, 10 * (r - n * t), 10 * (3 * q + r) // t - 10 * n
        else:
            q, r, t, k, n, l = q * k, (2 * q + r) * l, t * l, k + 1, (q * (7 * k + 2) + r * l) // (t * l), l + 2
    return "".join(found)


def main():
    source, notes = sys.argv[1:]
    pid = os.getpid()
    size = os.path.getsize(source)
    words = collections.Counter()
    with open(source, "rb") as file:
        for part in range(PARTS):
            words.update(file.read(size // PARTS).split())
            digits = pi(DIGITS + part)
            with open(notes, "a") as out:
                out.write(f"part {part}: {len(words)} words, pi ends in {digits[-10:]}\n")
            print("part", part, "done", flush=True)
    with open(notes) as file:
        print(file.read(), end="")
    print("ten frequent words:", words.most_common(10))
    print("pid unchanged:", os.getpid() == pid)


main()
