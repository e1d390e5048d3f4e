"""Finding the weights: the calculus of moving a distribution along logit differences, and searches that use it."""
