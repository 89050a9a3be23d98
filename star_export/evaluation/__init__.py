"""Questions with known answers, and what pruning does to the answers."""
