"""Trains the bundled model on rows that `generate.ts` writes, and measures it.

The curriculum is one of length. A stage is left when its answers are learnt or when its share of the time is over, so
that every length gets its minutes. Rows of a task that is learnt are thinned out: the generators write several times
what a GPU reads, and what it reads should be what is not known yet.

The folder `--out` can be used at any time: tokenizer and configuration are there from the start, the weights from the
first half minute, and a run that is stopped (SIGTERM) or loses its generators keeps the best it had. At the end every
task is answered greedily on fresh seeds, with the weights as they are stored (BF16) and float32 arithmetic.

The command and the numbers are in the model card.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import numpy as np
import torch

from answers import evaluate
from model import CONFIG, Model, decoder_layer, put, read, snapshot, weighted_loss, write
from rows import CHUNK, Rows, split
from start import copies, under_tokenizer, vocabulary

TASKS = [
    "needle", "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
    "niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
]
# Tasks whose loss decides when a stage is over.
CORE = range(0, 10)
# Tasks with one value to find.
SINGLE = range(0, 7)
# Tasks that need counting, which a small model learns badly.
COUNTING = (10, 11)
# Padding, text, answers, answers of counting tasks, first tokens of a list's entries: these count more where the other
# answers are known. Which entry follows can only be learnt by a model that copies.
CLASS_WEIGHTS = [0.0, 0.01, 1.0, 0.2, 1.0]
ENTRY, ENTRY_WEIGHT, ENTRY_LOSS = 4, 5.0, 0.7

# Tokens a row, rows a batch, share of the training time at most; the last stage takes all that is left.
STAGES = "256x128:0.28,512x128:0.2,1280x48:0.2,4736x16:1"
LEAVE_LOSS = 0.02
# Rows of a task are kept with a probability of its loss over --learnt, and not less than this.
KEEP = 0.25
# Every other batch of the first stage is of copies until their loss is below this, where they are asked for.
COPY_LOSS = 0.3
# Every MIX-th batch has rows of one of the two lengths before.
MIX = 4


def parse_stages(text):
    stages = []
    for part in text.split(","):
        size, share = part.split(":")
        row, rows = size.split("x")
        if int(rows) % CHUNK:
            raise ValueError(f"Cannot train in batches of {rows} rows as their number must be a multiple of {CHUNK}")
        stages.append((int(row), int(rows), float(share)))
    return stages


class Feed:
    """Batches of one length; rows of tasks that are learnt are thinned out, unless the generators fall behind."""

    def __init__(self, rows, keep, seed):
        self.rows, self.keep, self.random = rows, keep, np.random.default_rng(seed)

    def batch(self, count):
        """Task numbers, ids and classes of `count` rows; 1 / KEEP times as many are read at most."""
        kept, spare, have = [], [], 0
        for _ in range(int(count / KEEP) // CHUNK):
            chunk = self.rows.chunk()
            take = self.random.random(CHUNK) < (self.keep[chunk[:, 0]] if self.rows.chunks else 1.0)
            kept.append(chunk[take])
            spare.append(chunk[~take])
            have += int(take.sum())
            if have >= count:
                break
        data = np.concatenate(kept + spare)[:count]
        return tuple(torch.from_numpy(part) for part in split(data, self.rows.row))


class Trainer:
    """The model with its optimizer, and what is known of its losses."""

    def __init__(self, args, model, device):
        self.args, self.model, self.device = args, model, device
        self.table = torch.tensor(CLASS_WEIGHTS, device=device)
        self.layer_of, self.loss_of = decoder_layer, weighted_loss
        self.optimizer = self.make_optimizer()
        self.average, self.entries, self.copying = {}, {}, None
        self.best, self.best_weights, self.last_save = math.inf, None, time.time()
        self.mean = [p.detach().clone() for p in model.parameters()] if args.average else None

    def make_optimizer(self):
        matrices = [p for p in self.model.parameters() if p.dim() == 2]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        options = {"fused": True} if self.device.type == "cuda" else {}
        return torch.optim.AdamW(groups, lr=self.args.rate, betas=(0.9, 0.95), **options)

    def losses(self, ids, classes):
        """The loss of a batch, the loss of each token, and which are answers."""
        if self.device.type == "cuda":
            ids, classes = (x.pin_memory().to(self.device, non_blocking=True) for x in (ids, classes))
        ids = ids.long()
        kinds = classes[:, 1:].long()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            hidden = self.model.hidden(ids[:, :-1], self.layer_of)
            loss, losses = self.loss_of(hidden, self.model.norm, self.model.embed, ids[:, 1:], self.table[kinds])
        return loss, losses, kinds

    def compile(self, shapes, limit):
        """Compiles one step of each shape ahead, so that stages lose no time to it; plain functions where that fails.
        After `limit` the shapes that are left wait for their stage."""
        if not self.args.compile:
            return
        if not hasattr(torch, "compile"):
            print(f"PyTorch {torch.__version__} has no torch.compile: plain functions", flush=True)
            return
        try:
            from torch import _dynamo

            for name in ("recompile_limit", "cache_size_limit"):
                if hasattr(_dynamo.config, name):
                    setattr(_dynamo.config, name, 64)
            self.layer_of = torch.compile(decoder_layer, dynamic=False)
            self.loss_of = torch.compile(weighted_loss, dynamic=False)
            for row, rows in shapes:
                start = time.time()
                if start > limit:
                    print(f"compilation is slow: rows of {row} are left for their stage", flush=True)
                    continue
                ids = torch.randint(3, CONFIG["vocab_size"], (rows, row), dtype=torch.int32)
                loss, _, _ = self.losses(ids, torch.ones(rows, row, dtype=torch.uint8))
                loss.backward()
                print(f"compiled {rows} rows of {row} in {time.time() - start:.1f} s, loss {float(loss.detach()):.3f}", flush=True)
        except Exception as error:
            print(f"torch.compile failed, plain functions instead: {error!r}"[:2000], flush=True)
            self.layer_of, self.loss_of = decoder_layer, weighted_loss
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, ids, classes, rate):
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        try:
            loss, losses, kinds = self.losses(ids, classes)
            loss.backward()
        except Exception as error:
            if self.layer_of is decoder_layer:
                raise
            print(f"a compiled step failed, plain functions from here on: {error!r}"[:2000], flush=True)
            self.layer_of, self.loss_of = decoder_layer, weighted_loss
            self.optimizer.zero_grad(set_to_none=True)
            return self.step(ids, classes, rate)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.mean is not None:
            for mean, p in zip(self.mean, self.model.parameters()):
                mean.lerp_(p.detach(), 1 / self.args.average)
        return loss.detach(), losses.detach(), kinds

    def averaged(self):
        """The averaged weights as they are stored; None where there are none or where they broke."""
        if self.mean is None or not all(bool(mean.isfinite().all()) for mean in self.mean):
            return None
        last = [p.detach().clone() for p in self.model.parameters()]
        self.take(self.mean)
        weights = snapshot(self.model)
        self.take(last)
        return weights

    def take(self, parameters):
        """Sets the model's parameters."""
        with torch.no_grad():
            for p, value in zip(self.model.parameters(), parameters):
                p.copy_(value)

    def note(self, tasks, losses, kinds):
        """Takes a batch's losses into the averages: of answers, and of the entries of lists."""
        self.table[ENTRY] = ENTRY_WEIGHT if self.single() < ENTRY_LOSS else CLASS_WEIGHTS[ENTRY]
        for table, mask in ((self.average, kinds >= 2), (self.entries, kinds == ENTRY)):
            mask = mask.float()
            sums, counts = (losses * mask).sum(1).cpu(), mask.sum(1).cpu()
            for task in set(tasks.tolist()):
                here = tasks == task
                if float(counts[here].sum()) == 0:
                    continue
                value = float(sums[here].sum() / counts[here].sum())
                table[task] = value if task not in table else 0.8 * table[task] + 0.2 * value

    def note_copies(self, losses, kinds):
        """Takes a batch of copies into their average."""
        value = float(losses[kinds >= 2].mean())
        self.copying = value if self.copying is None else 0.5 * self.copying + 0.5 * value

    def single(self):
        """Mean loss of the tasks with one value to find; infinite before they are met."""
        single = [self.average[t] for t in SINGLE if t in self.average]
        return sum(single) / len(single) if single else math.inf

    def core(self):
        """Mean and largest loss of the tasks that count; those not met yet are left out, infinite before the first."""
        core = [self.average[t] for t in CORE if t in self.average]
        return (sum(core) / len(core), max(core)) if core else (math.inf, math.inf)

    def keep_best(self, mean):
        """Writes the weights unless they got much worse in this stage; goes back to the best ones where they broke."""
        self.last_save = time.time()
        if not math.isnan(mean):
            # Averages of learnt tasks jump by more than half; what is meant is a run that went astray.
            if mean <= 1.5 * self.best + LEAVE_LOSS:
                self.best = min(self.best, mean)
                self.best_weights = snapshot(self.model)
                write(self.best_weights, self.args.out)
            return
        print("losses are no numbers: back to the weights saved last", flush=True)
        if self.best_weights is not None:
            put(self.model, self.best_weights)
        self.optimizer = self.make_optimizer()
        self.average.clear()


def train(args, model, device, begin, deadline, stopped):
    """Goes through the stages until the deadline; `begin` is when the program started."""
    trainer = Trainer(args, model, device)
    stages = parse_stages(args.stages)
    sizes = {row: rows for row, rows, _ in stages}
    mixed_of = {row: [r for r, _, _ in stages[max(0, n - 2) : n]] for n, (row, _, _) in enumerate(stages)}
    stages = stages[args.first_stage :]
    used = {r for row, _, _ in stages for r in [row, *mixed_of[row]]}
    limit = time.time() + (deadline - time.time()) / 4
    trainer.compile([(row, rows) for row, rows in sizes.items() if row in used], limit)
    span = deadline - time.time()
    print(f"{span:.0f} s for {len(stages)} stages", flush=True)
    keep = np.ones(len(TASKS))
    feeds, log = {}, []
    seed = args.seed * 1000
    step = tokens = log_tokens = 0
    last_log = start = time.time()
    random = np.random.default_rng(seed)
    try:
        for number, (row, _, share) in enumerate(stages):
            final = number == len(stages) - 1
            mixed = mixed_of[row]
            for old in [r for r in feeds if r != row and r not in mixed]:
                feeds.pop(old).rows.close()
            side = max(1, args.workers // 7)
            for length, workers in [(row, max(1, args.workers - side * len(mixed)))] + [(r, side) for r in mixed]:
                if length not in feeds:
                    rows = Rows(args.generator, args.tokenizer, length, workers, seed, args.focus)
                    feeds[length] = Feed(rows, keep, seed)
                    seed += workers
            stage_start = time.time()
            stage_end = deadline if final else min(deadline, stage_start + share * span)
            # Losses of shorter rows say nothing of these.
            trainer.average.clear()
            trainer.entries.clear()
            trainer.best = math.inf
            stage_step = 0
            while time.time() < stage_end and not stopped:
                here = mixed[(step // MIX) % len(mixed)] if mixed and step % MIX == MIX - 1 else row
                copying = args.copies and number == 0 and step % 2 == 1 and (trainer.copying is None or trainer.copying > COPY_LOSS)
                if copying:
                    ids, classes = copies(random, sizes[row], row, CONFIG["vocab_size"])
                else:
                    tasks, ids, classes = feeds[here].batch(sizes[here])
                rate = args.rate * min(1.0, (step + 1) / args.warmup)
                if args.decay == "all":
                    rate *= max(0.0, (deadline - time.time()) / max(1e-6, deadline - start))
                elif final:
                    left = (deadline - time.time()) / max(1e-6, deadline - stage_start)
                    rate *= max(0.0, min(1.0, left / 0.85)) * (1.0 if number == 0 else 0.8)
                loss, losses, kinds = trainer.step(ids, classes, rate)
                step += 1
                stage_step += 1
                tokens += ids.numel()
                log_tokens += ids.numel()
                if copying:
                    if step % 20 == 0:
                        trainer.note_copies(losses, kinds)
                    continue
                if step > 2 and step % 25:
                    continue
                if here == row:
                    trainer.note(tasks, losses, kinds)
                mean, worst = trainer.core()
                for task, value in trainer.average.items():
                    keep[task] = 2 * KEEP if task in COUNTING else max(KEEP, min(1.0, value / args.learnt))
                now = time.time()
                if now - last_log > args.log_every or step <= 2:
                    short = {t: TASKS[t].replace("niah_", "") for t in range(len(TASKS))}
                    parts = " ".join(f"{short[t]}={v:.3f}" for t, v in sorted(trainer.average.items()))
                    entries = " ".join(f"{short[t]}={v:.3f}" for t, v in sorted(trainer.entries.items()))
                    print(
                        f"{now - begin:6.1f}s row {row} step {step} loss {float(loss):.4f} core {mean:.4f} lr {rate:.1e} "
                        f"{log_tokens / max(1e-6, now - last_log) / 1e6:.2f} Mtok/s waited {sum(f.rows.waited for f in feeds.values()):.1f} s "
                        f"| {parts} | entries {entries}"
                        + ("" if trainer.copying is None else f" | copies {trainer.copying:.3f}"),
                        flush=True,
                    )
                    last_log, log_tokens = now, 0
                    log.append({"seconds": now - begin, "row": row, "step": step, "answerLoss": mean})
                if now - trainer.last_save > args.save_every:
                    trainer.keep_best(math.nan if math.isnan(float(loss)) else mean)
                if not final and stage_step >= 300 and mean < LEAVE_LOSS and worst < 3 * LEAVE_LOSS:
                    break
            print(f"stage {row} over after {time.time() - stage_start:.0f} s, {stage_step} steps", flush=True)
            if time.time() >= deadline or stopped:
                break
        trainer.keep_best(trainer.core()[0])
    except Exception:  # What was learnt is saved and measured all the same.
        print(f"training stopped: {traceback.format_exc()}"[-2000:], flush=True)
    for feed in feeds.values():
        feed.rows.close()
    averaged = trainer.averaged()
    put(model, trainer.best_weights or snapshot(model))
    write(snapshot(model), args.out)
    return {"steps": step, "tokens": tokens, "seconds": time.time() - begin, "log": log}, averaged


def measure(args, model, averaged, files, device, end):
    """Accuracy of the weights; of the averaged ones too, where they are there: the better ones stay. The first
    measurement may take half of what is left, so that both compare the same cells."""
    if averaged is None:
        return evaluate(model.eval(), args.tokenizer, files, TASKS, device, end)
    last = snapshot(model)
    plain = evaluate(model.eval(), args.tokenizer, files, TASKS, device, time.time() + (end - time.time()) / 2)
    put(model, averaged)
    print(f"the same of weights averaged over {args.average:g} steps:", flush=True)
    other = evaluate(model, args.tokenizer, files, TASKS, device, end)
    cells = [(task, n) for task in (TASKS[t] for t in CORE) for n in plain.get(task, {}) if n in other.get(task, {})]
    scores = [sum(table[task][n] for task, n in cells) / max(1, len(cells)) for table in (plain, other)]
    better = scores[1] > scores[0]
    print(f"mean of {len(cells)} cells {scores[0]:.2f}, averaged {scores[1]:.2f}: {'averaged' if better else 'plain'} weights stay", flush=True)
    if better:
        write(averaged, args.out)
        return other
    put(model, last)
    return plain


def check_export(args, model, device):
    """The written folder, read by transformers, must give our own logits."""
    try:
        from transformers import LlamaForCausalLM
    except ImportError:
        print("transformers is not installed: the folder is not read with it", flush=True)
        return
    other = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32, attn_implementation="eager").to(device).eval()
    ids = torch.randint(3, CONFIG["vocab_size"], (1, 200), device=device)
    with torch.no_grad():
        ours = model.logits(model.hidden(ids))
        theirs = other(ids).logits
    print(f"transformers: relative difference of logits {float((ours - theirs).norm() / theirs.norm()):.2e}", flush=True)


def start_prompts(args, folder):
    """Evaluation prompts of seeds that no row has, written while the model trains."""
    files = []
    for task in TASKS:
        path = os.path.join(folder, f"{task}.jsonl")
        with open(path, "w") as f:
            process = subprocess.Popen(
                args.generator
                + ["prompts", "--tokenizer", args.tokenizer, "--task", task, "--lengths", args.lengths]
                + ["--count", str(args.count), "--seed", str(900_000_000 + args.seed)],
                stdout=f,
            )
        files.append((process, path))
    return files


def parse_args():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--generator", type=lambda s: s.split(), required=True, help="command that runs generate.ts")
    p.add_argument("--tokenizer", required=True, help="tokenizer.json; tokenizer_config.json lies beside it")
    p.add_argument("--out", required=True, help="folder for the model")
    p.add_argument("--minutes", type=float, default=9.0, help="time for everything, evaluation included")
    p.add_argument("--evaluation-minutes", type=float, default=0.9)
    p.add_argument("--stages", default=STAGES, help="tokens a row x rows a batch : share of the time, ...")
    p.add_argument("--first-stage", type=int, default=0, help="stages to leave out, where --init has been through them")
    p.add_argument("--init", help="model.safetensors to start from")
    p.add_argument("--init-tokenizer", help="tokenizer.json of --init, where it is another")
    p.add_argument("--copies", action="store_true", help="rows of copies in the first stage, until they are learnt")
    p.add_argument("--rate", type=float, default=2e-3, help="learning rate at its peak")
    p.add_argument("--warmup", type=int, default=300, help="steps up to the peak")
    p.add_argument("--decay", choices=("last", "all"), default="last", help="stages in which the learning rate falls to zero")
    p.add_argument("--focus", type=float, default=0.0, help="share of rows that are haystacks of needles with many questions")
    p.add_argument("--learnt", type=float, default=LEAVE_LOSS, help="loss a token below which rows of a task are thinned out")
    p.add_argument("--average", type=float, default=0.0, help="steps over which weights are averaged beside; 0: not at all")
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--hidden", type=int, default=256)
    p.add_argument("--count", type=int, default=32, help="evaluation examples per task and length")
    p.add_argument("--lengths", default="512,1024,2048,4096", help="of evaluation prompts")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, default=14, help="generator processes")
    p.add_argument("--threads", type=int, help="PyTorch's threads on a processor")
    p.add_argument("--log-every", type=float, default=5.0, help="seconds")
    p.add_argument("--save-every", type=float, default=30.0, help="seconds")
    p.add_argument("--device", default="cuda")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return p.parse_args()


def main():
    begin = time.time()
    args = parse_args()
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    os.makedirs(args.out, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(os.path.dirname(args.tokenizer) or ".", name), args.out)
    known = vocabulary(args.tokenizer)
    CONFIG["vocab_size"] = (len(known) + 63) // 64 * 64
    CONFIG["num_hidden_layers"], CONFIG["hidden_size"] = args.layers, args.hidden
    CONFIG["intermediate_size"] = 704 * args.hidden // 256
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    model = Model(CONFIG).to(device)
    if args.init:
        weights = read(args.init)
        if args.init_tokenizer:
            weights = under_tokenizer(weights, vocabulary(args.init_tokenizer), known, CONFIG["vocab_size"])
        put(model, weights)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "a processor"
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, PyTorch {torch.__version__} on {where}", flush=True)

    prompts = tempfile.mkdtemp()
    files = start_prompts(args, prompts)
    end = begin + 60 * args.minutes
    report, averaged = train(args, model, device, begin, end - 60 * args.evaluation_minutes, stopped)
    print(f"trained {report['steps']} steps, {report['tokens'] / 1e6:.1f} M tokens, {report['seconds']:.0f} s", flush=True)
    if not stopped:
        report["accuracy"] = measure(args, model, averaged, files, device, end)
    for process, _ in files:
        process.kill()
    shutil.rmtree(prompts)
    with open(os.path.join(args.out, "report.json"), "w") as f:
        json.dump(report, f, indent=1)
    if not stopped:
        try:
            check_export(args, model, device)
        except Exception as error:  # The model is saved: a failing check must not lose the run.
            print(f"check with transformers failed: {error!r}", flush=True)
    print(f"all over after {time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    sys.setswitchinterval(0.001)
    main()
