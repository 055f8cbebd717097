"""Training rows from `generate.ts`: several processes write, threads read ahead."""

import subprocess
import threading
import time
from collections import deque

import numpy as np

CHUNK = 16


def split(data, row):
    """Task numbers [rows], ids [rows, row] and classes [rows, row] of rows as bytes."""
    tasks = data[:, :2].copy().view(np.uint16)[:, 0].astype(np.int64)
    ids = data[:, 2 : 2 + 2 * row].copy().view(np.uint16).astype(np.int32)
    return tasks, ids, data[:, 2 + 2 * row :].copy()


class Rows:
    """Rows of one length, written by `workers` generator processes, a stream of seeds each."""

    def __init__(self, generator, tokenizer, row, workers, seed, focus):
        self.row, self.chunks, self.open, self.waited = row, deque(), True, 0.0
        self.space = threading.Semaphore(64)
        self.ready = threading.Semaphore(0)
        self.processes = [
            subprocess.Popen(
                generator
                + ["rows", "--tokenizer", tokenizer, "--row", str(row), "--seed", str(seed + i), "--focus", str(focus)],
                stdout=subprocess.PIPE,
                bufsize=0,
            )
            for i in range(workers)
        ]
        for p in self.processes:
            threading.Thread(target=self._read, args=(p,), daemon=True).start()

    def _read(self, process):
        size = CHUNK * (2 + 3 * self.row)
        while self.open:
            buffer = bytearray(size)
            view, at = memoryview(buffer), 0
            while at < size:
                n = process.stdout.readinto(view[at:])
                if not n:
                    if self.open:
                        print(f"a generator of rows of {self.row} ended with {process.wait()}; the others go on", flush=True)
                    return
                at += n
            self.space.acquire()
            self.chunks.append(buffer)
            self.ready.release()

    def chunk(self):
        """The next CHUNK rows as bytes: [CHUNK, bytes a row]."""
        start = time.time()
        if not self.ready.acquire(timeout=60):
            raise RuntimeError(f"Cannot train as rows of {self.row} tokens must come within 60 s: none came")
        data = np.frombuffer(self.chunks.popleft(), np.uint8).reshape(CHUNK, -1)
        self.space.release()
        self.waited += time.time() - start
        return data

    def close(self):
        self.open = False
        for p in self.processes:
            p.kill()
        for p in self.processes:
            p.wait()
            self.space.release()
