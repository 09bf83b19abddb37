"""Differentiate through an adaptation: a quadratic with its closed form, then a language model of your own.

python examples/meta_gradient.py [MODEL]        a folder, a hub name, or 'tiny-terms' (the default)
"""

import sys

import torch

from mass.config import LoraConfig, ModelConfig
from mass.inner import SGD, adapt
from mass.lm import load_lm

# A quadratic: ℓ_i(t) = ½ (t − c_i)². One step with rate r is t ↦ t − r Σ w_i (t − c_i).
centres = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
weights = torch.tensor([0.5, 0.3, 0.4], dtype=torch.float64, requires_grad=True)
start, rate = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (3.0, 0.25))


def quadratic(params, index):
    return 0.5 * (params["t"] - (centres if index is None else centres[index])) ** 2


adapted = adapt(quadratic, {"t": start}, weights, SGD(lr=rate), steps=5)
(0.5 * (adapted["t"] - 7.0) ** 2).backward()  # any outer loss: exact gradients for weights, start and rate
print(f"dE/dstart {start.grad:.12f}, closed form {(adapted['t'].item() - 7.0) * (1 - 0.25 * 1.2) ** 5:.12f}")

# A language model: which of two solved problems, practised for two steps, helps with a third?
lm = load_lm(ModelConfig(sys.argv[1] if len(sys.argv) > 1 else "tiny-terms"), LoraConfig(r=8))
solved = {"Compute 3 + 4.": "3+4=7. Answer: 7", "Compute 6 + 4.": "Answer: 10"}
practice = lm.batch([lm.example_row(*pair) for pair in solved.items()])
target = lm.batch([lm.example_row("Compute 5 + 4.", "5+4=9. Answer: 9")])
weights, theta = torch.tensor([0.5, 0.5], requires_grad=True), lm.init_adapter(seed=0)
adapted = adapt(
    lambda params, index: lm.losses(practice.select(index), params), theta, weights, SGD(lr=0.3), steps=2, memory_gb=4.0
)
loss = lm.losses(target, adapted).sum()
loss.backward()
print(f"loss on the target {lm.losses(target, theta).item():.4f} -> {loss.item():.4f} after practice")
print("dloss/dweight", dict(zip(solved, weights.grad.tolist(), strict=True)))
