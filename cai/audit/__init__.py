"""The constitution as an instrument: what can be said about a document by reading it."""
