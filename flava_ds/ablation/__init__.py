"""The paper's ablation, small: runs of every row and seed, what they reach, and which orderings hold."""
