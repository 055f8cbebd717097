"""What training starts from besides the rows: weights under another tokenizer, and rows of copies."""

import json

import numpy as np
import torch

ANSWER = 2
EMBEDDING = "model.embed_tokens.weight"


def vocabulary(path):
    with open(path) as f:
        return json.load(f)["model"]["vocab"]


def cut(token, known):
    """A token in the longest pieces that a vocabulary has."""
    pieces, at = [], 0
    while at < len(token):
        end = len(token)
        while end > at + 1 and token[at:end] not in known:
            end -= 1
        pieces.append(token[at:end])
        at = end
    return [p for p in pieces if p in known]


def under_tokenizer(tensors, old, new, rows):
    """Weights whose embedding has `rows` rows, for the vocabulary `new` instead of `old`. A token that is new gets the
    embeddings of its pieces, the first ones more of them, and something of its own to be told apart by."""
    before = tensors[EMBEDDING].float()
    size = before.norm(dim=1).mean()
    random = torch.Generator().manual_seed(0)
    after = torch.randn(rows, before.shape[1], generator=random)
    after *= size / after.norm(dim=1, keepdim=True)
    for token, i in new.items():
        pieces = [token] if token in old else cut(token, old)
        if not pieces:
            continue
        row = sum(before[old[p]] / (n + 1) for n, p in enumerate(pieces))
        if token not in old:
            row = row / row.norm() + 0.5 * after[i] / size
            row = row / row.norm() * size
        after[i] = row
    return {**tensors, EMBEDDING: after.to(tensors[EMBEDDING].dtype)}


def copies(random, rows, row, vocab):
    """Rows that repeat tokens drawn at random, as ids and classes: how to go on after a token that was there before is
    all that there is to learn in them."""
    ids = np.empty((rows, row), np.int32)
    classes = np.zeros((rows, row), np.uint8)
    for i in range(rows):
        period = random.integers(8, row // 2)
        ids[i] = np.resize(random.integers(3, vocab, period), row)
        classes[i, period + 1 :] = ANSWER
    return torch.from_numpy(ids), torch.from_numpy(classes)
