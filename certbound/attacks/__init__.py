"""Attacks find inputs: a loss gap that they find is a lower bound."""
