"""Norms: finding them, folding their gains, fixing what they divide by, removing them. Always on a copy."""
