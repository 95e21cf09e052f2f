"""Stages: one function each, from typed settings and artifacts to an artifact."""
