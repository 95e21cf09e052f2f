"""From one evaluated response of a run back to what it may have been learned from."""
