"""The steering matrix: several constitutions trained on one base, each judged under each."""
