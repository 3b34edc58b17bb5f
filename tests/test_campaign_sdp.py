"""The campaign of small networks on a small scale: nothing wrong, wrong bounds are noticed, a killed run resumes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from campaign import sdp
from campaign.__main__ import main

from certbound.network import Network


def test_nothing_is_wrong_and_every_kind_is_drawn() -> None:
    found = [sdp.check(3, i) for i in range(2 * len(sdp.KINDS))]
    assert [r["wrong"] for r in found] == [[]] * len(found)
    assert {r["kind"] for r in found} == set(sdp.KINDS)
    assert found[0]["2"]["sampled"] is not None and found[0]["2"]["sampled"] <= found[0]["2"]["patterns"] * (1 + 1e-9)
    assert found[1]["2"]["sampled"] is None
    assert sdp.check(3, 1)["2"]["value"] == found[1]["2"]["value"]


def test_the_pattern_maximum_is_the_librarys() -> None:
    from certbound.lipschitz.patterns import pattern_maximum

    for index in range(30):
        net = sdp.draw(11, index)
        for norm in (2.0, math.inf):
            most, bits = sdp.pattern_maximum(net.weights, norm)
            J = net.weights[0]
            for b, w in zip(bits, net.weights[1:], strict=True):
                J = w @ (((b >> np.arange(len(J))) & 1)[:, None] * J)
            assert float(sdp.norms_of(J[None], norm)[0]) == pytest.approx(most, rel=1e-9, abs=1e-300)
            assert most == pytest.approx(pattern_maximum(net.weights[:-1], net.weights[-1], norm), rel=1e-9)


def test_bounds_that_are_too_small_are_found() -> None:
    """By the pattern maximum, and by the certificate; a believed alteration is one too."""

    def small(network: Network, norm: float, output: int | None) -> object:
        result = sdp.by_barrier(network, norm, output)
        most, _ = sdp.pattern_maximum(
            [x.weight for x in network.layers[::2]] if output is None
            else [*(x.weight for x in network.layers[:-1:2]), network.layers[-1].weight[[output]]], norm,
        )  # fmt: skip
        return replace(result, bound=replace(result.bound, value=0.3 * most))

    words = " ".join(w for index in (0, 200, 400) for w in sdp.check(3, index, small)["wrong"])
    assert "2: " in words and "inf: " in words
    assert "below the pattern maximum" in words and "does not prove the value" in words and "Jacobian" in words

    class Credulous:
        def __init__(self, certificate: object) -> None:
            self.certificate = certificate

        def __getattr__(self, name: str) -> object:
            return getattr(self.certificate, name)

        def verify(self, network: object) -> bool:
            return True

    def credulous(network: Network, norm: float, output: int | None) -> object:
        result = sdp.by_barrier(network, norm, output)
        return replace(result, certificate=Credulous(result.certificate))

    def raising(network: Network, norm: float, output: int | None) -> object:
        raise ValueError("no")

    assert any("believed another network" in w or "TypeError" in w for w in sdp.check(3, 0, credulous)["wrong"])
    assert sdp.check(3, 0, raising)["wrong"] == ["2: ValueError: no", "inf: ValueError: no"]


def test_every_alteration_is_refused() -> None:
    seen = set()
    for index in range(12):
        net = sdp.draw(5, index)
        for norm, output in ((2.0, None), (math.inf, net.output)):
            certificate = sdp.by_barrier(net.network, norm, output).certificate
            weights = net.weights if output is None else [*net.weights[:-1], net.weights[-1][[output]]]
            most, _ = sdp.pattern_maximum(weights, norm)
            every = list(sdp.altered(certificate, net.network, most, 7))
            for turn, (name, _) in enumerate(every):
                k = turn + len(every) * index
                assert sdp._altered_accepted(certificate, net.network, most, k) == (every[k % len(every)][0], False)
                seen.add(name)
    assert len(seen) >= 13


def test_a_run_resumes_after_half_a_line(tmp_path: Path) -> None:
    out = tmp_path / "sdp.jsonl"
    assert main(["sdp", "--networks", "3", "--out", str(out), "--quiet"]) == 0
    three = out.read_text().splitlines()
    out.write_text("\n".join(three[:2]) + "\n" + three[2][:50])
    assert main(["sdp", "--networks", "4", "--out", str(out), "--quiet"]) == 0
    lines = out.read_text().splitlines()
    assert lines[:2] == three[:2] and len(lines) == 5
    assert sorted(r["index"] for r in sdp.read_lines(out)) == [0, 1, 2, 3]
    summary = sdp.summarise(out, json.loads(three[0])["seed"])
    assert summary["networks"] == 4 and summary["wrong"] == 0 and summary["bounds"] == 8
    # lines of other sources count for nothing
    out.write_text("".join(json.dumps({**json.loads(x), "digest": "another"}) + "\n" for x in three))
    assert sdp.summarise(out, json.loads(three[0])["seed"])["networks"] == 0
    assert main(["sdp", "--report", "--out", str(out)]) == 1
