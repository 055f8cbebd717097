"""Trains the bundled model on rows that `generate.ts` writes, and measures it.

The curriculum is one of length: rows of 256, 512, 1280 and 4736 tokens; a stage is left when its answers are learnt or
its time is over. Padding counts 0 in the loss, text 0.01, answers 1, answers of the counting tasks 0.2. At the end every
task is answered greedily on fresh seeds, with the weights as they are stored (bf16) and float32 arithmetic.

See the model card for the command and the numbers.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

PAD, BOS, EOS = 0, 1, 2
TASKS = [
    "needle", "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
    "niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
]
# Tasks whose loss decides when a stage is over; the others need counting, which a small model learns badly.
CORE = range(0, 10)
CLASS_WEIGHTS = [0.0, 0.01, 1.0, 0.2]

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 704,
    "max_position_embeddings": 5120,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "num_key_value_heads": 4,
    "pad_token_id": PAD,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 2048,
}


# ---- model ----


HEADS, KV_HEADS, HEAD_DIM = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]


def rms_norm(x, weight):
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + CONFIG["rms_norm_eps"])
    return y * weight


def project(x, p, cos, sin):
    """Rotated queries and keys, and values: [rows, heads, tokens, head_dim]."""
    b, t, _ = x.shape
    h = rms_norm(x, p["input_layernorm"])
    q = F.linear(h, p["q_proj"]).view(b, t, HEADS, HEAD_DIM).transpose(1, 2)
    k = F.linear(h, p["k_proj"]).view(b, t, KV_HEADS, HEAD_DIM).transpose(1, 2)
    v = F.linear(h, p["v_proj"]).view(b, t, KV_HEADS, HEAD_DIM).transpose(1, 2)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def finish(x, p, attended):
    """What follows attention in a layer."""
    b, t, _ = x.shape
    x = x + F.linear(attended.transpose(1, 2).reshape(b, t, HEADS * HEAD_DIM), p["o_proj"])
    h = rms_norm(x, p["post_attention_layernorm"])
    return x + F.linear(F.silu(F.linear(h, p["gate_proj"])) * F.linear(h, p["up_proj"]), p["down_proj"])


def spread(kv):
    """KV heads repeated for their query heads."""
    b, h, t, d = kv.shape
    return kv[:, :, None].expand(b, h, HEADS // KV_HEADS, t, d).reshape(b, HEADS, t, d)


def decoder_layer(x, p, cos, sin):
    """One layer; `p` holds its weights by name. A plain function of tensors, so that it is compiled once per shape."""
    q, k, v = project(x, p, cos, sin)
    return finish(x, p, F.scaled_dot_product_attention(q, spread(k), spread(v), is_causal=True))


def rotate(x, cos, sin):
    """RoPE on halves, as Hugging Face's Llama does it."""
    y = x.float()
    half = y.shape[-1] // 2
    turned = torch.cat((-y[..., half:], y[..., :half]), dim=-1)
    return (y * cos + turned * sin).to(x.dtype)


def layer_shapes(c):
    d, hd, inner = c["hidden_size"], c["head_dim"], c["intermediate_size"]
    return {
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
        "q_proj": (HEADS * hd, d),
        "k_proj": (KV_HEADS * hd, d),
        "v_proj": (KV_HEADS * hd, d),
        "o_proj": (d, HEADS * hd),
        "gate_proj": (inner, d),
        "up_proj": (inner, d),
        "down_proj": (d, inner),
    }


class Model(nn.Module):
    """Embedding, layers as dictionaries of weights, final norm; the output shares the embedding."""

    def __init__(self, c):
        super().__init__()
        depth = c["num_hidden_layers"]
        std = c["initializer_range"]
        self.embed = nn.Parameter(torch.randn(c["vocab_size"], c["hidden_size"]) * std)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            layer = nn.ParameterDict()
            for name, shape in layer_shapes(c).items():
                if len(shape) == 1:
                    layer[name] = nn.Parameter(torch.ones(shape))
                else:
                    scale = std / math.sqrt(2 * depth) if name in ("o_proj", "down_proj") else std
                    layer[name] = nn.Parameter(torch.randn(shape) * scale)
            self.layers.append(layer)
        self.norm = nn.Parameter(torch.ones(c["hidden_size"]))
        t = torch.arange(c["max_position_embeddings"]).float()
        inv = c["rope_theta"] ** (-torch.arange(0, c["head_dim"], 2).float() / c["head_dim"])
        angles = torch.cat([torch.outer(t, inv)] * 2, dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def weights(self):
        """Weights of each layer, by name."""
        return [dict(layer.items()) for layer in self.layers]

    def hidden(self, ids, layer_of=decoder_layer):
        x = F.embedding(ids, self.embed)
        t = ids.shape[1]
        cos, sin = self.cos[:t], self.sin[:t]
        for p in self.weights():
            x = layer_of(x, p, cos, sin)
        return x

    def logits(self, x):
        return F.linear(rms_norm(x, self.norm), self.embed)

    def names(self):
        """Parameters by their Hugging Face names."""
        out = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm}
        for i, p in enumerate(self.weights()):
            for name, tensor in p.items():
                part = "" if "norm" in name else "self_attn." if name[0] in "qkvo" else "mlp."
                out[f"model.layers.{i}.{part}{name}.weight"] = tensor
        return out


def weighted_loss(x, norm, embed, targets, weights):
    """Loss per token times its weight, and per token without it."""
    logits = F.linear(rms_norm(x, norm), embed)
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum(), losses.view_as(weights)


def save(model, folder):
    from safetensors.torch import save_file

    tensors = {k: v.detach().to(torch.bfloat16).cpu().contiguous() for k, v in model.names().items()}
    path = os.path.join(folder, "model.safetensors")
    save_file(tensors, path + ".part", metadata={"format": "pt"})
    os.replace(path + ".part", path)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(CONFIG, f, indent=2)
        f.write("\n")


def load(model, path):
    from safetensors.torch import load_file

    tensors = load_file(path)
    with torch.no_grad():
        for name, p in model.names().items():
            p.copy_(tensors[name])


# ---- rows ----


class Rows:
    """Rows of one length, written by several generator processes, a stream of seeds each."""

    CHUNK = 16

    def __init__(self, args, row, workers, seed):
        self.row, self.chunks, self.open = row, deque(), True
        self.space = threading.Semaphore(64)
        self.ready = threading.Semaphore(0)
        self.processes = [
            subprocess.Popen(
                args.generator + ["rows", "--tokenizer", args.tokenizer, "--row", str(row), "--seed", str(seed + i)],
                stdout=subprocess.PIPE,
                bufsize=0,
            )
            for i in range(workers)
        ]
        for p in self.processes:
            threading.Thread(target=self._read, args=(p.stdout,), daemon=True).start()

    def _read(self, stream):
        size = self.CHUNK * (2 + 3 * self.row)
        while self.open:
            buffer = bytearray(size)
            view, at = memoryview(buffer), 0
            while at < size:
                n = stream.readinto(view[at:])
                if not n:
                    return
                at += n
            self.space.acquire()
            self.chunks.append(buffer)
            self.ready.release()

    def batch(self, rows):
        """Task numbers [rows], ids [rows, row] and classes [rows, row]."""
        parts = []
        for _ in range(rows // self.CHUNK):
            if not self.ready.acquire(timeout=60):
                raise RuntimeError(f"No rows of {self.row} tokens came within 60 s")
            parts.append(np.frombuffer(self.chunks.popleft(), np.uint8).reshape(self.CHUNK, -1))
            self.space.release()
        data = np.concatenate(parts)
        tasks = data[:, :2].copy().view(np.uint16)[:, 0]
        ids = data[:, 2 : 2 + 2 * self.row].copy().view(np.uint16)
        return (
            torch.from_numpy(tasks.astype(np.int64)),
            torch.from_numpy(ids.astype(np.int32)),
            torch.from_numpy(data[:, 2 + 2 * self.row :].copy()),
        )

    def close(self):
        self.open = False
        for p in self.processes:
            p.kill()
        for _ in range(len(self.processes)):
            self.space.release()


# ---- training ----

# Row length, rows per batch, share of the training time at most, other row lengths mixed in (every n-th batch).
STAGES = [
    (256, 128, 0.30, []),
    (512, 128, 0.15, [256]),
    (1280, 48, 0.18, [512]),
    (4736, 16, 1.00, [1280, 512]),
]
LEAVE_LOSS = 0.02
LEARNING_RATE = 2e-3
# Every MIX-th batch has rows of another length.
MIX = 4


def train(args, model, device, deadline):
    start = time.time()
    span = deadline - start
    sizes = {row: rows for row, rows, _, _ in STAGES}
    if args.small:
        sizes = {row: 16 for row in sizes}
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE, betas=(0.9, 0.95), fused=device.type == "cuda",
    )
    layer_of, loss_of = decoder_layer, weighted_loss
    if args.compile:
        layer_of = torch.compile(decoder_layer, dynamic=False)
        loss_of = torch.compile(weighted_loss, dynamic=False)
    table = torch.tensor(CLASS_WEIGHTS, device=device)
    feeds = {}
    seed = args.seed * 1000

    def open_rows(row, workers):
        nonlocal seed
        if row in feeds:
            return
        feeds[row] = Rows(args, row, workers, seed)
        seed += workers

    step, tokens, log, last_log, last_save, log_tokens = 0, 0, [], time.time(), time.time(), 0
    average = {}
    stages = STAGES[args.first_stage :]
    for number, (row, _, share, mixed) in enumerate(stages):
        final = number == len(stages) - 1
        for old in [r for r in feeds if r != row and r not in mixed]:
            feeds.pop(old).close()
        side = max(1, args.workers // 7)
        open_rows(row, args.workers - side * len(mixed))
        for other in mixed:
            open_rows(other, side)
        stage_start = time.time()
        stage_end = deadline if final else min(deadline, stage_start + share * span)
        average.clear()
        stage_step = 0
        while time.time() < stage_end:
            here = row
            if mixed and step % MIX == MIX - 1:
                here = mixed[(step // MIX) % len(mixed)]
            tasks, ids, classes = feeds[here].batch(sizes[here])
            if device.type == "cuda":
                ids, classes = ids.pin_memory().to(device, non_blocking=True), classes.pin_memory().to(device, non_blocking=True)
            ids = ids.long()
            inputs, targets = ids[:, :-1], ids[:, 1:]
            weights = table[classes[:, 1:].long()]
            rate = LEARNING_RATE * min(1.0, (step + 1) / 300)
            if final:
                left = (deadline - time.time()) / max(1e-6, deadline - stage_start)
                rate *= max(0.0, min(1.0, left / 0.85)) * (1.0 if number == 0 else 0.8)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss, losses = loss_of(model.hidden(inputs, layer_of), model.norm, model.embed, targets, weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            stage_step += 1
            tokens += inputs.numel()
            log_tokens += inputs.numel()
            if step <= 2 or step % 25 == 0:
                answer = (classes[:, 1:] >= 2).float()
                sums = (losses.detach() * answer).sum(1).cpu()
                counts = answer.sum(1).cpu()
                if here == row:
                    for task in set(tasks.tolist()):
                        rows_of = tasks == task
                        value = float(sums[rows_of].sum() / counts[rows_of].sum())
                        average[task] = value if task not in average else 0.8 * average[task] + 0.2 * value
                core = [average[t] for t in CORE if t in average]
                mean, worst = (sum(core) / len(core), max(core)) if core else (99.0, 99.0)
                now = time.time()
                if now - last_log > args.log_every or step <= 2:
                    parts = " ".join(f"{TASKS[t].replace('niah_', '')}={v:.3f}" for t, v in sorted(average.items()))
                    print(
                        f"{now - start:6.1f}s row {row} step {step} loss {float(loss.detach()):.4f} core {mean:.4f} lr {rate:.1e} "
                        f"{log_tokens / max(1e-6, now - last_log) / 1e6:.2f} Mtok/s waiting {len(feeds[row].chunks)} | {parts}",
                        flush=True,
                    )
                    last_log, log_tokens = now, 0
                    log.append({"seconds": now - start, "row": row, "step": step, "answerLoss": mean})
                if now - last_save > 60:
                    save(model, args.out)
                    last_save = now
                if not final and stage_step >= 300 and mean < LEAVE_LOSS and worst < 3 * LEAVE_LOSS:
                    break
        print(f"stage {row} over after {time.time() - stage_start:.0f} s, {stage_step} steps", flush=True)
        if time.time() >= deadline:
            break
    for feed in feeds.values():
        feed.close()
    return {"steps": step, "tokens": tokens, "seconds": time.time() - start, "log": log}


# ---- evaluation ----


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
        x = finish(x, p, F.scaled_dot_product_attention(q, spread(k), spread(v), is_causal=True))
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
            x = finish(x, p, F.scaled_dot_product_attention(q, spread(keys), spread(values), attn_mask=seen))
        token = model.logits(x[:, 0]).argmax(-1)
        out.append(token)
        done |= token == EOS
    answers = []
    for line in torch.stack(out, 1).tolist():
        answers.append(line[: line.index(EOS)] if EOS in line else line)
    return answers


def evaluate(args, model, device, files, deadline):
    """Accuracy in percent per task and length."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(args.tokenizer)
    for p in model.parameters():
        p.data = p.data.to(torch.bfloat16).float()
    cells = defaultdict(list)
    for process, path in files:
        process.wait()
        with open(path) as f:
            for line in f:
                record = json.loads(line)
                cells[record["task"], record["length"]].append(record)
    results = {}
    order = sorted(cells, key=lambda c: (-c[1] if c[1] <= 4096 else 0, TASKS.index(c[0])))
    samples = []
    for task, length in order:
        if time.time() > deadline:
            print("evaluation stopped by time", flush=True)
            break
        records = cells[task, length]
        total = 0.0
        for at in range(0, len(records), 64):
            part = records[at : at + 64]
            # The prompt as Rust's tokenizer would have it must be the one that was generated.
            text = tokenizer.decode(part[0]["ids"], skip_special_tokens=True)
            if tokenizer.encode(text).ids != part[0]["ids"]:
                print(f"tokenizers disagree on a prompt of {task} {length}", flush=True)
            said = answer(model, [r["ids"] for r in part], part[0]["maxNewTokens"], device)
            for r, ids in zip(part, said):
                text = tokenizer.decode(ids).lower()
                hits = [a.lower() in text for a in r["answers"]]
                total += float(any(hits)) if r["part"] else sum(hits) / len(hits)
            if at == 0:
                samples.append((task, length, tokenizer.decode(said[0], skip_special_tokens=False), part[0]["answers"]))
        results.setdefault(task, {})[length] = round(100 * total / len(records), 2)
    lengths = sorted({n for r in results.values() for n in r})
    for task, length, said, wanted in samples[:: max(1, len(samples) // 20)]:
        print(f"  {task} {length}: {said!r} for {wanted}")
    print(f"{'task':18}" + "".join(f"{n:>8}" for n in lengths))
    for task in TASKS:
        if task in results:
            print(f"{task:18}" + "".join(f"{results[task].get(n, float('nan')):8.1f}" for n in lengths), flush=True)
    return results


def check_export(args, model, device):
    """The written folder, read by transformers, must give our own logits."""
    from transformers import LlamaForCausalLM

    other = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32, attn_implementation="eager").to(device).eval()
    ids = torch.randint(3, CONFIG["vocab_size"], (1, 200), device=device)
    with torch.no_grad():
        ours = model.logits(model.hidden(ids))
        theirs = other(ids).logits
    print(f"transformers: relative difference of logits {float((ours - theirs).norm() / theirs.norm()):.2e}", flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--generator", type=lambda s: s.split(), required=True, help="command that runs generate.ts")
    p.add_argument("--tokenizer", required=True, help="tokenizer.json")
    p.add_argument("--out", required=True, help="folder for the model")
    p.add_argument("--minutes", type=float, default=9.0, help="time for everything, evaluation included")
    p.add_argument("--evaluation-minutes", type=float, default=1.2)
    p.add_argument("--count", type=int, default=64, help="evaluation examples per task and length")
    p.add_argument("--lengths", default="512,1024,2048,4096")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, default=14)
    p.add_argument("--first-stage", type=int, default=0)
    p.add_argument("--init", help="model.safetensors to start from")
    p.add_argument("--log-every", type=float, default=5.0)
    p.add_argument("--device", default="cuda")
    p.add_argument("--small", action="store_true", help="small batches, for a trial without an accelerator")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = p.parse_args()
    begin = time.time()
    device = torch.device(args.device)
    os.makedirs(args.out, exist_ok=True)
    with open(args.tokenizer) as f:
        vocabulary = json.load(f)["model"]["vocab"]
    CONFIG["vocab_size"] = (len(vocabulary) + 63) // 64 * 64
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    model = Model(CONFIG).to(device)
    if args.init:
        load(model, args.init)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)

    # Evaluation prompts of seeds that no row has, written while the model trains.
    files = []
    prompts = tempfile.mkdtemp()
    for task in TASKS:
        path = os.path.join(prompts, f"{task}.jsonl")
        process = subprocess.Popen(
            args.generator
            + ["prompts", "--tokenizer", args.tokenizer, "--task", task, "--lengths", args.lengths]
            + ["--count", str(args.count), "--seed", str(900_000_000 + args.seed)],
            stdout=open(path, "w"),
        )
        files.append((process, path))
    end = begin + 60 * args.minutes
    report = train(args, model, device, end - 60 * args.evaluation_minutes)
    save(model, args.out)
    print(f"trained {report['steps']} steps, {report['tokens'] / 1e6:.0f} M tokens, {report['seconds']:.0f} s", flush=True)
    report["accuracy"] = evaluate(args, model.eval(), device, files, end)
    shutil.rmtree(prompts)
    with open(os.path.join(args.out, "report.json"), "w") as f:
        json.dump(report, f, indent=1)
    if device.type == "cuda":
        try:
            check_export(args, model, device)
        except Exception as error:  # The model is saved: a failing check must not lose the run.
            print(f"check with transformers failed: {error!r}", flush=True)
    print(f"all over after {time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    sys.setswitchinterval(0.001)
    main()
