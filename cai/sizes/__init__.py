"""Memory, tokens and time of a run before anything is loaded: predictions from shapes."""
