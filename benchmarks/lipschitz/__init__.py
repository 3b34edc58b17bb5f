"""Lipschitz bounds side by side: how tight, how fast, how much memory, and whether the number reported is valid.

``python -m benchmarks.lipschitz`` (or ``--quick``) runs every method on random and trained networks, each cell
(network, problem, method) in a process of its own, prints a table and draws tightness against time. A killed run goes
on where it stopped: every cell is one file under ``--out``.

``pip install 'certbound[sdp,report,data,bench]'`` brings every method. The peer eclipse-nn asks for nothing but numpy,
scipy, torch and cvxpy, without pins; to keep it out of an environment:
``pip install --no-deps --target /tmp/eclipse eclipse-nn`` and ``PYTHONPATH=/tmp/eclipse``. Without it its rows say
"not installed".
"""
