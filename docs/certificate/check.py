"""Check an l2 Lipschitz certificate with numpy alone: python check.py lipschitz.certificate weights.npz."""

import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

raw = Path(sys.argv[1]).read_bytes()
start = 8 + int.from_bytes(raw[:8], "little")
header = json.loads(raw[8:start])  # a safetensors file
claim = json.loads(header.pop("__metadata__")["certbound"])["fields"]
read = {k: np.frombuffer(raw, "<f8", v["shape"][0], start + v["data_offsets"][0]) for k, v in header.items()}
proof = claim["proofs"][0]
W = [w.astype(float) / 2.0**e for w, e in zip(np.load(sys.argv[2]).values(), proof["exponents"], strict=True)]
t, d = [read[f"t.0.{i}"] for i in range(len(W) - 1)], read["d.0"]

at = np.cumsum([0, len(d), *map(len, W)])  # M: diag(d), 2T_1, 2T_2, s I on the diagonal, −T_i W_i and −H below it
M = np.diag(np.concatenate([d, *(2 * x for x in t), np.full(len(W[-1]), proof["s"])]))
for i, (w, x) in enumerate(zip(W, [*t, np.ones(len(W[-1]))], strict=True)):
    block = -x[:, None] * w
    M[at[i + 1] : at[i + 2], at[i] : at[i + 1]], M[at[i] : at[i + 1], at[i + 1] : at[i + 2]] = block, block.T

n, u = len(M), 2.0**-53
c = 1.2 * (n + 20) * u * np.trace(M)  # M − c I = L Lᵀ + E proves M ⪰ 0 if c covers ‖E‖ and every rounding
L = np.linalg.cholesky(M - c * np.eye(n))
E = M - c * np.eye(n) - L @ L.T
assert np.linalg.norm(E) + 2 * u * np.linalg.norm(M) + (n + 8) * u * np.linalg.norm(L) ** 2 <= c, "not proved"
square = Fraction(proof["s"]) * Fraction(np.max(d)) * Fraction(4) ** sum(proof["exponents"])  # L² <= s max d, for l2
assert claim["norm"] == 2 and square <= Fraction(claim["value"]) ** 2, "value too small"
print(f"proved: the network's l2 Lipschitz constant is at most {claim['value']!r}")
