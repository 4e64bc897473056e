"""Attention in PyTorch, as its users write it: the peer of record on the host. bench/peers/compare runs it.

Layout [B, H, L, D], float32, B = 1, H = 8, d = dv = 64, FAVOR+ with m = 256. A case of training is the forward pass and autograd's backward pass together, with
gradients of queries, keys and values.
usage: torch_attention.py [--lengths 1024,4096,16384] [--cases favor-causal,...]
Prints one line of JSON a case: the median and the fastest of the timed calls in milliseconds.
"""
import argparse
import contextlib
import json
import os
import statistics
import time

import torch
import torch.nn.functional as F

HEADS, DIM, NUM_FEATURES, CHUNK = 8, 64, 256, 64
REPEATS, WARM_UP_SECONDS = 5, 0.3
# A call that takes so long is not repeated.
LONG_SECONDS = 10
TRAINING = '-training'


def times_ms(run):
    def timed():
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3

    begin = time.perf_counter()
    first = timed()
    if first > LONG_SECONDS * 1e3:
        return [first]
    while time.perf_counter() - begin < WARM_UP_SECONDS:
        run()
    return [timed() for _ in range(REPEATS)]


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
    """FAVOR+ features with the published stabiliser, which has no gradient, and epsilon."""
    c = x.shape[-1] ** -0.25
    a = (x * c) @ w.T
    diagonal = (x * x).sum(-1, keepdim=True) * 0.5 * c * c
    maximum = a.amax(-1, keepdim=True) if is_query else a.amax((-1, -2), keepdim=True)
    return (torch.exp(a - diagonal - maximum.detach()) + 1e-6) * w.shape[0] ** -0.5


def elu(x):
    return F.elu(x) + 1


def training(forward, inputs, gradient):
    """The forward pass and its backward pass; gradients are made anew, not added to those of the last call."""
    def run():
        for x in inputs:
            x.grad = None
        forward().backward(gradient)

    return run


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--lengths', default='1024,4096,16384')
    parser.add_argument('--cases', default='favor-causal,favor-bidirectional,elu-causal,elu-bidirectional,softmax-causal')
    options = parser.parse_args()
    setting = '%d, BLAS %s' % (torch.get_num_threads(), os.environ.get('OPENBLAS_NUM_THREADS', 'any'))
    torch.manual_seed(0)
    w = torch.randn(NUM_FEATURES, DIM)
    for length in map(int, options.lengths.split(',')):
        shape = (1, HEADS, length, DIM)
        q, k, v = torch.randn(shape) * .3, torch.randn(shape) * .3, torch.randn(shape)
        g = torch.randn(shape)
        cases = {
            'favor-causal': lambda: causal(favor(q, w, True), favor(k, w, False), v),
            'favor-bidirectional': lambda: bidirectional(favor(q, w, True), favor(k, w, False), v),
            'elu-causal': lambda: causal(elu(q), elu(k), v),
            'elu-bidirectional': lambda: bidirectional(elu(q), elu(k), v),
            'softmax-causal': lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            'softmax-bidirectional': lambda: F.scaled_dot_product_attention(q, k, v),
        }
        for name in options.cases.split(','):
            forward = cases[name.removesuffix(TRAINING)]
            is_training = name.endswith(TRAINING)
            for x in (q, k, v):
                x.requires_grad_(is_training)
            with contextlib.nullcontext() if is_training else torch.inference_mode():
                times = times_ms(training(forward, (q, k, v), g) if is_training else forward)
            for x in (q, k, v):
                x.grad = None
            line = {'peer': 'torch ' + torch.__version__, 'threads': setting, 'case': name, 'L': length,
                    'ms': round(statistics.median(times), 3), 'fastestMs': round(min(times), 3)}
            print(json.dumps(line), flush=True)


main()
