"""Times what the CUDA build is compared with, on the same shapes: torch's attention (FlashAttention-2 and cuDNN) and, where
it is installed, transformers' prefill and decode with random weights, its cache whole and cut to --rows rows. Prints JSON lines; deno task bench:gpu --peer=FILE
puts them beside its own numbers.

    python3 tasks/gpu/peer_torch.py [--config tasks/gpu/llama-3-8b.json] [--lengths 8192,32768] [--rows 1024] > peer.jsonl
"""

import argparse
import json
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

parser = argparse.ArgumentParser()
parser.add_argument("--config", default="tasks/gpu/llama-3-8b.json")
parser.add_argument("--lengths", default="8192,32768")
parser.add_argument("--rows", type=int, default=1024)
parser.add_argument("--repeats", type=int, default=20)
arguments = parser.parse_args()
with open(arguments.config) as file:
    config = json.load(file)
lengths = [int(n) for n in arguments.lengths.split(",")]
heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
head_dim = config.get("head_dim") or config["hidden_size"] // heads


def say(**line):
    print(json.dumps(line), flush=True)


def device_ms(work):
    """Median of the device times of a call, after three that do not count."""
    times = []
    for i in range(arguments.repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def attention(n):
    q, k, v = (torch.randn(1, heads, n, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    for name, backend in [("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)]:
        try:
            with sdpa_kernel(backend):
                ms = device_ms(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        except RuntimeError as error:
            say(what="skipped", peer=name, n=n, why=str(error).splitlines()[0])
            continue
        say(what="attention", peer=name, n=n, ms=ms, flop_per_s=2.0 * n * n * heads * head_dim / ms * 1e3)


def step_ms(model, cache, token):
    """Median time of a greedy step, after four that do not count."""
    steps = []
    for _ in range(24):
        torch.cuda.synchronize()
        start = time.perf_counter()
        out = model(token, past_key_values=cache, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
        torch.cuda.synchronize()
        steps.append((time.perf_counter() - start) * 1e3)
    return statistics.median(steps[4:])


def model_times():
    try:
        import transformers
    except ImportError:
        say(what="skipped", peer="transformers", why="transformers is not installed")
        return
    shape = transformers.AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k != "model_type"})
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa").eval()
    with torch.inference_mode():
        for n in lengths:
            ids = torch.randint(0, config["vocab_size"], (1, n), device="cuda")
            prefills = []
            torch.cuda.reset_peak_memory_stats()
            for i in range(3):
                torch.cuda.synchronize()
                start = time.perf_counter()
                out = model(ids, use_cache=True, logits_to_keep=1)
                torch.cuda.synchronize()
                prefills.append((time.perf_counter() - start) * 1e3)
            peak = torch.cuda.max_memory_allocated()
            say(what="prefill", peer="transformers", n=n, ms=statistics.median(prefills[1:]), peak_bytes=peak)
            cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
            # The rows of a cut cache are read like any others, so which rows were kept makes no difference to the time.
            for rows in (0, arguments.rows):
                if rows > 0:
                    cache.crop(rows)
                ms = step_ms(model, cache, token)
                say(what="decode", peer="transformers", batch=1, n=n, rows=rows, ms=ms)
            del out, cache


say(what="device", peer="torch", name=torch.cuda.get_device_name(), torch=torch.__version__)
for length in lengths:
    attention(length)
model_times()
