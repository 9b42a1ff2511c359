"""How answers are read and graded: one small file each, and none of them guesses."""
