"""Nodes and edges of a model as a graph, their scores, and running only some of them."""
