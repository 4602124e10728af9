"""Projections of the user's own: how they are folded, kept, caught up, published, verified.

What one is: projections/projection.py.
"""
