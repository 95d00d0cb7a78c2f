"""Tables of runs, small: every row and seed trained and measured, and what the numbers say."""
