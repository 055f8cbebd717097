"""Greedy answers of the trained model to evaluation prompts, and their scores."""

import json
import time
from collections import defaultdict

import torch
import torch.nn.functional as F

from model import EOS, HEAD_DIM, KV_HEADS, attention, finish, project, spread


class Decoder:
    """Text of ids of a byte-level vocabulary."""

    def __init__(self, path):
        with open(path) as f:
            tokenizer = json.load(f)
        self.tokens = {i: token for token, i in tokenizer["model"]["vocab"].items()}
        self.special = {entry["id"] for entry in tokenizer["added_tokens"] if entry["special"]}
        visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        moved = [b for b in range(256) if b not in set(visible)]
        self.bytes = {chr(b): b for b in visible}
        self.bytes.update({chr(0x100 + i): b for i, b in enumerate(moved)})

    def text(self, ids):
        chars = "".join(self.tokens.get(i, "") for i in ids if i not in self.special)
        return bytes(self.bytes[c] for c in chars).decode("utf-8", "replace")


@torch.no_grad()
def answer(model, prompts, new_tokens, device):
    """Greedy answers of prompts (lists of ids), decoded together with a cache."""
    b = len(prompts)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    longest = int(lengths.max())
    ids = torch.zeros(b, longest, dtype=torch.long, device=device)
    for i, p in enumerate(prompts):
        ids[i, : len(p)] = torch.tensor(p, device=device)
    room = longest + new_tokens
    cos, sin = model.cos[:longest], model.sin[:longest]
    x = F.embedding(ids, model.embed)
    cache = []
    layers = model.weights()
    for p in layers:
        q, k, v = project(x, p, cos, sin)
        x = finish(x, p, attention(q, spread(k), spread(v), is_causal=True))
        keys = torch.zeros(b, KV_HEADS, room, HEAD_DIM, device=device)
        values = torch.zeros_like(keys)
        keys[:, :, :longest], values[:, :, :longest] = k, v
        cache.append((keys, values))
    rows = torch.arange(b, device=device)
    token = model.logits(x[rows, lengths - 1]).argmax(-1)
    out = [token]
    done = token == EOS
    place = torch.arange(room, device=device)
    for i in range(new_tokens - 1):
        if i % 8 == 7 and bool(done.all()):
            break
        at = lengths + i
        cos, sin = model.cos[at][:, None, None], model.sin[at][:, None, None]
        seen = (place[None] <= at[:, None])[:, None, None]
        x = F.embedding(token, model.embed)[:, None]
        for p, (keys, values) in zip(layers, cache):
            q, k, v = project(x, p, cos, sin)
            keys[rows, :, at], values[rows, :, at] = k[:, :, 0], v[:, :, 0]
            x = finish(x, p, attention(q, spread(keys), spread(values), attn_mask=seen))
        token = model.logits(x[:, 0]).argmax(-1)
        out.append(token)
        done |= token == EOS
    answers = []
    for line in torch.stack(out, 1).tolist():
        answers.append(line[: line.index(EOS)] if EOS in line else line)
    return answers


def rust_tokenizer(path):
    """Hugging Face's own tokenizer, where it is installed: it must read the prompts as the generator wrote them."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        print("tokenizers is not installed: prompts are not compared with it", flush=True)
        return None
    return Tokenizer.from_file(path)


def evaluate(model, tokenizer, files, tasks, device, deadline, batch=64):
    """Accuracy in percent per task and length; cells that time leaves out are missing. `tasks` in order of weight."""
    decoder, rust = Decoder(tokenizer), rust_tokenizer(tokenizer)
    cells = defaultdict(list)
    for process, path in files:
        while process.poll() is None and time.time() < deadline:
            time.sleep(0.1)
        with open(path) as f:
            for line in f:
                if line.endswith("\n"):
                    record = json.loads(line)
                    cells[record["task"], record["length"]].append(record)
    results, samples = {}, []
    # The ten tasks of the card first, the longest prompts first.
    order = sorted(cells, key=lambda c: (tasks.index(c[0]) >= 10, -c[1], tasks.index(c[0])))
    for task, length in order:
        if time.time() > deadline:
            print("evaluation stopped by time", flush=True)
            break
        records = cells[task, length]
        total = 0.0
        for at in range(0, len(records), batch):
            part = records[at : at + batch]
            if rust is not None:
                text = rust.decode(part[0]["ids"], skip_special_tokens=True)
                if rust.encode(text).ids != part[0]["ids"] or text != decoder.text(part[0]["ids"]):
                    print(f"tokenizers disagree on a prompt of {task} {length}", flush=True)
            said = answer(model, [r["ids"] for r in part], part[0]["maxNewTokens"], device)
            for r, ids in zip(part, said):
                text = decoder.text(ids).lower()
                hits = [a.lower() in text for a in r["answers"]]
                total += float(any(hits)) if r["part"] else sum(hits) / len(hits)
            if at == 0:
                samples.append((task, length, decoder.text(said[0])[:100], part[0]["answers"]))
        results.setdefault(task, {})[length] = round(100 * total / len(records), 2)
    for task, length, said, wanted in samples[:: max(1, len(samples) // 20)]:
        print(f"  {task} {length}: {said!r} for {wanted}")
    lengths = sorted({n for r in results.values() for n in r})
    print("| task |" + "".join(f" {n} |" for n in lengths))
    print("| --- |" + " --- |" * len(lengths))
    for task in tasks:
        if task in results:
            print(f"| {task} |" + "".join(f" {results[task].get(n, float('nan')):.1f} |" for n in lengths), flush=True)
    return results
