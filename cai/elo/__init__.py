"""Win rates and Elo: policies in a round-robin, rated by Bradley-Terry from a judge's matches."""
