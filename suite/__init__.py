"""Train one rung of a suite: model, exact step, the loop, the command line."""
