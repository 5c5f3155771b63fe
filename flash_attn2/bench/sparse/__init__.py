"""Attention with block masks: patterns, their peers and shares of the dense rate."""
