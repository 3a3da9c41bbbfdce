"""One script a paper: the step and the generation against a plain baseline of equal mathematics, in the same run."""
