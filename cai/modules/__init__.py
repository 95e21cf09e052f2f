"""Lightning modules: parameters, one loss, the optimizer; no generation and no judging."""
