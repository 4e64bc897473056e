"""Attention in PyTorch, as its users write it: the peer of record on the host. bench/peers/compare runs it.

Layout [B, H, L, D], float32, B = 1, H = 8, d = dv = 64, FAVOR+ with m = 256.
usage: torch_attention.py [--lengths 1024,4096,16384] [--cases favor-causal,...]
Prints one line of JSON a case: the median and the fastest of the timed calls in milliseconds.
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

HEADS, DIM, NUM_FEATURES, CHUNK = 8, 64, 256, 64
REPEATS, WARM_UP_SECONDS = 5, 0.3


def times_ms(run):
    begin = time.perf_counter()
    run()
    while time.perf_counter() - begin < WARM_UP_SECONDS:
        run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def causal(q, k, v):
    """The chunked form of linear attention: the states before each chunk, and the masked product inside it."""
    batch, heads, length, r = q.shape
    dv = v.shape[-1]
    chunks = (batch, heads, length // CHUNK, CHUNK)
    qc, kc, vc = q.view(*chunks, r), k.view(*chunks, r), v.view(*chunks, dv)
    s = torch.einsum('bhcti,bhctj->bhcij', kc, vc)
    state = s.cumsum(2) - s
    z = kc.sum(3)
    normalizer = z.cumsum(2) - z
    inside = torch.einsum('bhcti,bhcsi->bhcts', qc, kc) * torch.tril(torch.ones(CHUNK, CHUNK))
    numerator = inside @ vc + qc @ state
    denominator = inside.sum(-1) + torch.einsum('bhcti,bhci->bhct', qc, normalizer)
    return (numerator / denominator[..., None]).view(batch, heads, length, dv)


def bidirectional(q, k, v):
    state = torch.einsum('bhnd,bhne->bhde', k, v)
    return torch.einsum('bhnd,bhde->bhne', q, state) / torch.einsum('bhnd,bhd->bhn', q, k.sum(2))[..., None]


def favor(x, w, is_query):
    """FAVOR+ features with the published stabiliser and epsilon."""
    c = x.shape[-1] ** -0.25
    a = (x * c) @ w.T
    diagonal = (x * x).sum(-1, keepdim=True) * 0.5 * c * c
    maximum = a.amax(-1, keepdim=True) if is_query else a.amax((-1, -2), keepdim=True)
    return (torch.exp(a - diagonal - maximum) + 1e-6) * w.shape[0] ** -0.5


def elu(x):
    return F.elu(x) + 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--lengths', default='1024,4096,16384')
    parser.add_argument('--cases', default='favor-causal,favor-bidirectional,elu-causal,elu-bidirectional,softmax-causal')
    options = parser.parse_args()
    torch.manual_seed(0)
    w = torch.randn(NUM_FEATURES, DIM)
    for length in map(int, options.lengths.split(',')):
        shape = (1, HEADS, length, DIM)
        q, k, v = torch.randn(shape) * .3, torch.randn(shape) * .3, torch.randn(shape)
        cases = {
            'favor-causal': lambda: causal(favor(q, w, True), favor(k, w, False), v),
            'favor-bidirectional': lambda: bidirectional(favor(q, w, True), favor(k, w, False), v),
            'elu-causal': lambda: causal(elu(q), elu(k), v),
            'elu-bidirectional': lambda: bidirectional(elu(q), elu(k), v),
            'softmax-causal': lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            'softmax-bidirectional': lambda: F.scaled_dot_product_attention(q, k, v),
        }
        for name in options.cases.split(','):
            with torch.inference_mode():
                times = times_ms(cases[name])
            line = {'peer': 'torch ' + torch.__version__, 'threads': torch.get_num_threads(), 'case': name, 'L': length,
                    'ms': round(statistics.median(times), 3), 'fastestMs': round(min(times), 3)}
            print(json.dumps(line), flush=True)


main()
