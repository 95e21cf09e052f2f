"""Finished runs side by side: what differs in their settings, and whether the results do.

Reads run folders and what they name in the store, and never a model; nothing here imports torch.
"""
