"""What the lemmas are checked with: exact numbers, gradient ascent, SMT, and the runner."""
