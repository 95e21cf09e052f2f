"""Feedback methods: who compares two responses under a principle, and how it is asked."""
