"""The bundled model in PyTorch, and its files.

Runs on PyTorch 1.13 and later; what later versions do faster is used where it is there.
"""

import json
import math
import os
import struct

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

PAD, BOS, EOS = 0, 1, 2

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

HEADS, KV_HEADS, HEAD_DIM = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]


def rms_norm(x, weight):
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + CONFIG["rms_norm_eps"])
    return y * weight


def rotate(x, cos, sin):
    """RoPE on halves, as Hugging Face's Llama does it."""
    y = x.float()
    half = y.shape[-1] // 2
    turned = torch.cat((-y[..., half:], y[..., :half]), dim=-1)
    return (y * cos + turned * sin).to(x.dtype)


def plain_attention(q, k, v, attn_mask=None, is_causal=False):
    """Attention with its whole matrix: for PyTorch before 2.0, where there is no other."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if is_causal:
        t = q.shape[-2]
        attn_mask = torch.ones(t, t, dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return scores.softmax(-1) @ v


attention = getattr(F, "scaled_dot_product_attention", plain_attention)


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
    return finish(x, p, attention(q, spread(k), spread(v), is_causal=True))


def weighted_loss(x, norm, embed, targets, weights):
    """Loss per token times its weight, and per token without it."""
    logits = F.linear(rms_norm(x, norm), embed)
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum(), losses.view_as(weights)


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


# ---- files ----


def snapshot(model):
    """The weights as they are stored: BF16, on the processor, by name."""
    return {k: v.detach().to(torch.bfloat16).cpu().contiguous() for k, v in model.names().items()}


def write(tensors, folder):
    """Writes `model.safetensors` and `config.json`; the file that was there stays whole until the new one is."""
    header, at, parts = {"__metadata__": {"format": "pt"}}, 0, []
    for name, tensor in tensors.items():
        data = tensor.view(torch.int16).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
        parts.append(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    path = os.path.join(folder, "model.safetensors")
    with open(path + ".part", "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        f.writelines(parts)
    os.replace(path + ".part", path)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(CONFIG, f, indent=2)
        f.write("\n")


def put(model, tensors):
    """Sets the weights from stored ones."""
    with torch.no_grad():
        for name, p in model.names().items():
            p.copy_(tensors[name])


def read(path):
    """The tensors of a BF16 safetensors file."""
    with open(path, "rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
        data = f.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"Cannot read {name} as it must be BF16: it is {entry['dtype']}")
        begin, end = entry["data_offsets"]
        numbers = np.frombuffer(data[begin:end], np.int16).copy()
        tensors[name] = torch.from_numpy(numbers).view(torch.bfloat16).view(entry["shape"])
    return tensors
