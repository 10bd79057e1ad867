"""SGD on the analysed MoE with loops: a seed, a sequence, an expert, a neuron at a time, derivatives by hand.

Written from the definition of the model; shares no code with `experiments.theory`.
"""

from __future__ import annotations

import math

import numpy as np


def forward(experts, router, signs, sequence, chosen):
    """f(x) of one sequence `[n, d]`, and for every expert its tokens, gates and values."""
    total, seen = 0.0, []
    for weights, row, sign in zip(experts, router, signs, strict=True):
        scores = [float(np.dot(row, token)) for token in sequence]
        taken = sorted(range(len(scores)), key=lambda j: -scores[j])[:chosen]
        top = max(scores[j] for j in taken)
        powers = [math.exp(scores[j] - top) for j in taken]
        gates = [power / sum(powers) for power in powers]
        values = [sum(max(0.0, float(np.dot(neuron, sequence[j]))) for neuron in weights) for j in taken]
        total += sign * sum(g * v for g, v in zip(gates, values, strict=True))
        seen.append((taken, gates, values))
    return total, seen


def slope(loss, label, output):
    """Derivative of the loss in f(x)."""
    if loss == "hinge":
        return -label if 1 - label * output > 0 else 0.0
    if loss == "logistic":
        return -label / (1 + math.exp(label * output))
    return -label


def train(experts, router, signs, batches, *, chosen, rate, router_rate, loss):
    """Weights `[E, m, d]` and router `[E, d]` after SGD over batches of `(sequences, labels)`."""
    experts, router = experts.copy(), router.copy()
    for sequences, labels in batches:
        grown, turned = np.zeros_like(experts), np.zeros_like(router)
        for sequence, label in zip(sequences, labels, strict=True):
            output, seen = forward(experts, router, signs, sequence, chosen)
            push = slope(loss, label, output) / len(labels)
            for s, (taken, gates, values) in enumerate(seen):
                mean = sum(g * v for g, v in zip(gates, values, strict=True))
                for j, gate, value in zip(taken, gates, values, strict=True):
                    turned[s] += push * signs[s] * gate * (value - mean) * sequence[j]
                    for r, neuron in enumerate(experts[s]):
                        if np.dot(neuron, sequence[j]) > 0:
                            grown[s, r] += push * signs[s] * gate * sequence[j]
        experts -= rate * grown
        router -= router_rate * turned
    return experts, router
