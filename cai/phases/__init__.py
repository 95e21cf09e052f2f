"""Phases: what a user asks for. Each file is a page of contents over `cai.stages`."""
