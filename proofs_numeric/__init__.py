"""Every lemma behind certbound, attacked: exact rational checks, gradient ascent, SMT, witnesses, counterexamples.

``python -m proofs_numeric`` runs all of them; ``--self-test`` runs them on deliberately broken statements, each of
which must be found false. One file is one lemma; its ``LEMMA`` is registered by being there.
"""
